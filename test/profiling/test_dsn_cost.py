"""Cost of DSN: Table I of the paper, and the two laws of conditional separators."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_sepx.layers.cost_track import Conditional
from espnet2_sepx.layers.dual_path import Segmentation
from espnet2_sepx.layers.slimmable import units
from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import build_model, separate
from espnet2_sepx.separators.dsn import DSNSeparator

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "egs2" / "wsj0_2mix" / "dsn" / "conf"

FRAMES, DIM, LEVELS = 61, 16, (0.25, 0.5, 1.0)
SMALL = {
    "num_heads": 4,
    "ffn_dim": 24,
    "chunk_size": 10,
    "intra_layers": 1,
    "inter_layers": 2,
    "gate_dim": 8,
    "gate_ffn_dim": 16,
}


def separator(**options):
    torch.manual_seed(0)
    model = DSNSeparator(DIM, levels=LEVELS, **(SMALL | options))
    model.record_cost = True
    return model


def counted(model, frames=FRAMES, lengths=None, dim=DIM):
    x = torch.rand(1, FRAMES if frames is None else frames, dim)
    work = count_macs(model, lambda: model(x, torch.tensor([lengths or x.shape[1]]))).total
    return work.all, model.last_cost


@pytest.mark.parametrize("execution", ["auto", "masked"])
def test_what_is_not_in_the_track_is_the_same_for_all_widths(execution):
    model = separator(execution=execution)
    assert isinstance(model, Conditional)
    fixed, theoretical = set(), set()
    random = torch.tensor(LEVELS)[torch.randint(3, (1, FRAMES))]
    runs = torch.tensor(LEVELS)[torch.randint(3, (1, 8))].repeat_interleave(8, 1)[:, :FRAMES]
    for external in (0.25, 0.5, 1.0, 0.6, random, runs):
        model.external_utilization = external
        total, track = counted(model)
        fixed.add(round(total - track.executed.sum().item()))
        theoretical.add(round(total - track.executed.sum().item() + track.densest.sum().item()))
        if external == 1.0 if isinstance(external, float) else False:
            dense = total
    assert len(fixed) == 1
    assert theoretical == {dense}


def test_the_gates_own_choice_is_counted_too():
    model = separator()
    total, track = counted(model)
    model.external_utilization = 1.0
    external, full = counted(model)
    gate = total - track.executed.sum() - (external - full.executed.sum())
    assert gate > 0
    assert track.executed.shape == track.densest.shape == track.valid.shape == (1, FRAMES)
    assert (track.executed <= track.densest * 1.0001).all()


def test_padded_chunks_are_left_out():
    _, track = counted(separator(external_utilization=0.5), lengths=31)
    assert track.valid.sum() == 31
    assert track.executed[0, :31].min() > 0
    assert not track.executed[0, 31:].any()


# Static network: GMAC/s here, as the paper counts, the paper's; of 4 s at 8 kHz.
TABLE_1 = {
    "0125": (4.141, 5.80, 5.8),
    "025": (7.546, 8.99, 9.0),
    "05": (14.356, 15.36, 15.4),
    "075": (21.165, 21.73, 21.8),
    "10": (27.975, 28.10, 28.1),
}


def by_hand(width: float, t: int) -> int:
    """Products of the static network of a width, and those of the encoder and decoder."""
    dim, size, heads, ffn_dim, head_dim = 256, 50, units(width, 8), units(width, 1024), 32
    s = Segmentation(size).num_chunks(t)
    layer = 4 * dim * heads * head_dim + 2 * dim * ffn_dim
    core = 2 * heads * head_dim * (size + s)
    masks = dim * dim * (t + 2 * s * size + 2 * 3 * t)
    return s * size * 8 * (2 * layer + core) + masks + 3 * 16 * dim * t


@pytest.mark.parametrize("name", ["0125", pytest.param("10", marks=pytest.mark.slow)])
def test_operators_add_up_to_the_hand_count(name):
    config = yaml.safe_load((CONF / f"train_static_{name}.yaml").read_text())
    model = build_model(config)
    mixture = noise(16 + 8 * 399)
    count = count_macs(model, lambda: separate(model, mixture, 8000))
    assert not count.uncounted
    assert count.total.all == by_hand(config["separator_conf"]["levels"][0], 400)


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1(name):
    """The paper counts the attention core at full width (1.758 in all) and a gate (0.040); its
    counter adds 0.080 for norms and by taking a transposed convolution for eight times its work."""
    executed, as_paper, paper = TABLE_1[name]
    config = yaml.safe_load((CONF / f"train_static_{name}.yaml").read_text())
    width, t = config["separator_conf"]["levels"][0], 3999
    macs = by_hand(width, t) / 4e9
    assert macs == pytest.approx(executed, abs=1e-3)
    skipped = (8 - units(width, 8)) / 8 * 1.758
    assert macs + skipped + 0.040 + 0.080 == pytest.approx(as_paper, abs=0.006)
    assert as_paper == pytest.approx(paper, rel=5e-3)


def test_parameters_of_table_1():
    golden = json.loads((ROOT / "test" / "golden" / "models.json").read_text())
    parameters = {"0125": 2_008_065, "025": 3_584_513, "05": 6_737_409}
    parameters |= {"075": 9_890_305, "10": 13_043_201}
    for name, count in parameters.items():
        key = (CONF / f"train_static_{name}.yaml").relative_to(ROOT).as_posix()
        assert golden[key]["parameters"] == count
    for name, gate in {"dsn_u2": 21_667, "dsn": 21_732}.items():
        key = (CONF / f"train_{name}.yaml").relative_to(ROOT).as_posix()
        assert golden[key]["parameters"] == parameters["10"] + gate
