"""Every pair of corpus and system: its recipe runs, from the corpus on disk to the report.

The corpora are small trees with the layout of the real ones (``test/corpora/trees.py``); the
configurations are the recipes' own, the networks smaller, the training one epoch of two steps.
Pairs of one corpus share its data, as they do for users.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test/corpora"))

import trees  # noqa: E402
import warm_python  # noqa: E402

PAIRS = sorted(
    f"{path.parents[1].name}/{path.parent.name}" for path in ROOT.glob("egs2/*/*/run.sh")
)
CORPORA = ("wsj0_2mix", "wham", "libri2mix", "lrs2_2mix", "echo2mix")
SYSTEMS = ("tf_moe", "re_sepformer", "s4m", "dsn", "spmamba")
SMALL = {
    "tf_moe": "num_blocks=1 num_channels=8 num_bands=12 num_experts=2",
    "re_sepformer": "intra_layers=1 memory_layers=1 intra_ffn_dim=32 memory_ffn_dim=32",
    "sepformer": "num_blocks=1 intra_layers=1 inter_layers=1 ffn_dim=32",
    "skim": "layer=1 unit=16",
    "s4m": "num_repeats=1 bottleneck_dim=16 hidden_dim=16",
    "dsn": "num_blocks=1 intra_layers=1 inter_layers=1 ffn_dim=32",
    "spmamba": "n_layers=1 emb_dim=8 expand=1 d_state=4",
}
MINI = ["--num_train", "4", "--num_valid", "2", "--num_test", "2"]
# Of the many test sets of DSN, one.
FEWER = {
    "wsj0_2mix/dsn": ["--test_overlap", "0.5", "--test_sets", "test_overlap50"],
    "wham/dsn": [
        *("--test_overlap", "0.5", "--test_noise", "0.5"),
        *("--test_sets", "test_overlap50_noise50"),
    ],
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> trees.Corpora:
    counts = {"train": 4, "valid": 2, "test": 2}
    return trees.build(tmp_path_factory.mktemp("corpora"), counts, seconds=1.0)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A private copy of all recipes, and an environment with an interpreter that starts at once."""
    folder = tmp_path_factory.mktemp("recipes")
    generated = shutil.ignore_patterns("data", "dump", "audio", "exp")
    shutil.copytree(ROOT / "egs2", folder / "egs2", symlinks=True, ignore=generated)
    shutil.copytree(ROOT / "utils", folder / "utils", symlinks=True)
    server, first_on_path = warm_python.install(tmp_path_factory.mktemp("python"))
    path = f"{first_on_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield folder / "egs2", {**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix}
    server.kill()
    server.wait()


def test_every_system_has_a_recipe_on_every_corpus():
    corpora = ("mini", *CORPORA)
    assert {f"{corpus}/{system}" for corpus in corpora for system in SYSTEMS} <= set(PAIRS)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_the_recipe_runs_from_the_corpus_to_the_report(pair, recipes, corpora):
    egs2, environment = recipes
    corpus, system = pair.split("/")
    small = " ".join(f"--separator_conf {word}" for word in SMALL[system].split())
    training = "--max_epoch 1 --num_iters_per_epoch 2 --batch_size 2 --num_workers 0"
    data = MINI if corpus == "mini" else corpora.options(corpus)
    command = [str(egs2 / pair / "run.sh"), *data, *FEWER.get(pair, [])]
    command += ["--stage", "1", "--stop_stage", "7", "--nj", "1", "--enh_tag", "tiny"]
    command += ["--enh_args", f"{training} {small}", "--metrics", "si_snr", "--examples", "1"]
    command += ["--score_valid", "false", "--train_threads", "1"]
    command += ["--profile_seconds", "0.5", "--profile_curve", ""]
    result = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    experiment = egs2 / pair / "exp/tiny"
    results = json.loads((experiment / "RESULTS.json").read_text())
    for scores in results["scores"].values():
        assert scores["metrics"]["si_snri"]["count"] == corpora.count(corpus, "test")
    assert (experiment / "report.html").stat().st_size > 10_000
