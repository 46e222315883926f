"""SIGKILL in every stage at a random moment: the next run ends with the same data and table."""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from private_recipe import Recipe

STAGES = range(1, 8)


def listing(recipe: Recipe) -> list[str]:
    """Names of all files, leftovers included, but for event files named by time and process."""
    found = []
    for top in (recipe.corpus / "data", recipe.corpus / "dump", recipe.corpus / "audio"):
        found += [str(path.relative_to(recipe.corpus)) for path in top.rglob("*")]
    found += [str(path.relative_to(recipe.path)) for path in (recipe.path / "exp").rglob("*")]
    return sorted(name for name in found if "events.out.tfevents" not in name)


def digest(paths: list[Path], base: Path) -> dict[str, str]:
    return {
        str(path.relative_to(base)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def audio(recipe: Recipe) -> dict[str, str]:
    return digest(sorted((recipe.corpus / "audio").rglob("*.wav")), recipe.corpus)


def table(recipe: Recipe) -> dict:
    return {
        str(path.relative_to(recipe.path)): path.read_text()
        for path in sorted(recipe.experiment.glob("score_*/utterances.csv"))
    } | {
        str(path.relative_to(recipe.path)): json.loads(path.read_text())["metrics"]
        for path in sorted(recipe.experiment.glob("score_*/summary.json"))
    }


def running_in(folder: Path) -> list[str]:
    """Command lines of live processes that mention ``folder``."""
    commands = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if str(folder) in command and int(entry.parent.name) != os.getpid():
            commands.append(command)
    return commands


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_data_and_table(tmp_path):
    calm, killed = Recipe(tmp_path / "calm"), Recipe(tmp_path / "killed")
    durations = {}
    for stage in STAGES:
        start = time.monotonic()
        calm.run("--stage", str(stage), "--stop_stage", str(stage))
        durations[stage] = time.monotonic() - start

    draw = random.Random(os.environ.get("KILL_SEED", "7"))
    for stage in STAGES:
        process = killed.start("--stage", str(stage), "--stop_stage", "7")
        moment = draw.uniform(0.1, 1.0) * durations[stage]
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 10
        while (left := running_in(killed.corpus)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, f"still running after a kill {moment:.1f} s into stage {stage}"
        killed.run("--stage", str(stage), "--stop_stage", str(stage))

    assert audio(killed) == audio(calm)
    assert table(killed) == table(calm)
    assert listing(killed) == listing(calm)
