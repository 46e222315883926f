"""RE-SepFormer and SepFormer against hand counts, and against the paper's Tables 1 and 4.

Convention: multiply-accumulates of matrix products and convolutions, of 1 s (8000 samples, 999
frames). The paper counted with ptflops 0.6.9, which adds biases, norms and activations: 1 to 2 %.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from espnet2_sepx.layers.dual_path import Segmentation
from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import build_model, separate

CONF = Path(__file__).resolve().parents[2] / "egs2" / "wsj0_2mix"
FS, KERNEL, STRIDE = 8000, 16, 8

# configuration, GMAC/s here, the paper's
RE_SEPFORMER = [
    ("re_sepformer", 6.207, 6.3),
    ("re_sepformer_intra4", 3.132, 3.2),
    ("re_sepformer_intra_ffn512", 4.005, 4.0),
    ("re_sepformer_memory4", 6.198, 6.2),
    ("re_sepformer_memory_ffn512", 6.200, 6.2),
    ("re_sepformer_small", 2.018, 2.0),
]
SEPFORMER = [
    ("sepformer", 69.04, 69.6),
    ("sepformer_no_overlap", 27.85, 28.0),
    ("sepformer_light", 18.59, None),
    ("sepformer_light_k200", 17.38, 17.5),
]


def config(model: str, name: str) -> dict:
    return yaml.safe_load((CONF / model / "conf" / f"train_{name}.yaml").read_text())


def frames(samples: int) -> int:
    return (samples - KERNEL) // STRIDE + 1


def layer(dim: int, ffn_dim: int, keys: int) -> int:
    return 4 * dim * dim + 2 * dim * ffn_dim + 2 * keys * dim


def coders(dim: int, t: int) -> int:
    return KERNEL * dim * t * 3  # once in, twice out


def re_sepformer(conf: dict, dim: int, t: int) -> int:
    size = conf["chunk_size"]
    s = t // size + 1
    intra = 2 * conf["intra_layers"] * s * size * layer(dim, conf["intra_ffn_dim"], size)
    memory = conf["memory_layers"] * s * layer(dim, conf["memory_ffn_dim"], s)
    return intra + memory + 2 * dim * dim * t + coders(dim, t)


def sepformer(conf: dict, dim: int, t: int) -> int:
    size = conf["chunk_size"]
    s = Segmentation(size, conf["overlap"], conf.get("pad_mode", "always")).num_chunks(t)
    intra = conf["intra_layers"] * layer(dim, conf["ffn_dim"], size)
    inter = conf["inter_layers"] * layer(dim, conf["ffn_dim"], s)
    tokens = s * size
    masks = 2 * (tokens + 3 * t) * dim * dim
    blocks = conf["num_blocks"] * (intra + inter) * tokens
    return dim * dim * t + blocks + masks + coders(dim, t)


def counted(yaml_config: dict, seconds: float) -> int:
    model = build_model(yaml_config)
    mixture = noise(int(seconds * FS))
    count = count_macs(model, lambda: separate(model, mixture, FS))
    assert not count.uncounted
    return count.total.all


def check(model: str, name: str, by_hand, expected: float, paper: float | None) -> None:
    conf = config(model, name)
    macs = counted(conf, 1)
    dim = conf["encoder_conf"]["channel"]
    assert macs == by_hand(conf["separator_conf"], dim, frames(FS))
    assert macs / 1e9 == pytest.approx(expected, rel=5e-4)
    if paper is not None:
        assert macs / 1e9 == pytest.approx(paper, rel=0.025)


@pytest.mark.parametrize(("name", "expected", "paper"), RE_SEPFORMER)
def test_re_sepformer(name, expected, paper) -> None:
    check("re_sepformer", name, re_sepformer, expected, paper)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected", "paper"), SEPFORMER)
def test_sepformer(name, expected, paper) -> None:
    check("sepformer", name, sepformer, expected, paper)


def test_four_seconds_and_causal_models_by_the_same_formula() -> None:
    conf = config("re_sepformer", "re_sepformer_small")
    assert counted(conf, 4) / 4e9 == pytest.approx(1.948, abs=5e-4)
    for name in ("causal", "strict"):  # masks save nothing by convention
        conf = config("re_sepformer", f"re_sepformer_{name}")
        assert counted(conf, 0.5) == re_sepformer(conf["separator_conf"], 128, frames(FS // 2))


def test_small_sepformer_by_the_formula() -> None:
    conf = config("sepformer", "sepformer_light")
    conf["separator_conf"].update(intra_layers=1, inter_layers=2, chunk_size=50)
    assert counted(conf, 0.5) == sepformer(conf["separator_conf"], 128, frames(FS // 2))
