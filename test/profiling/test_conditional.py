"""Executed and theoretical work of separators that skip some of it."""

import numpy as np
import pytest
import torch
from profiling_configs import small_tf_moe
from torch import nn

from espnet2_sepx.errors import UserError
from espnet2_sepx.layers.cost_track import Conditional, CostTrack
from espnet2_sepx.profiling.conditional import (
    conditional_separator,
    measure_set,
    spread,
    summarise,
    theoretical_macs,
)
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import build_model

FRAMES, BINS = 21, 65
FS = 8000


def conditional(**options):
    torch.manual_seed(0)
    separator = build_model(small_tf_moe(num_experts=4, **options)).separator
    separator.record_cost = True
    return separator


def counted(separator, spectrum, frames=FRAMES):
    """All MACs of a pass over one utterance and what the separator says about them."""
    lengths = torch.tensor([frames])
    work = count_macs(separator, lambda: separator(spectrum, lengths)).total
    return work.all, separator.last_cost


def spectra(number):
    generator = torch.Generator().manual_seed(1)
    shape = (number, 1, FRAMES, BINS)
    return torch.randn(shape, dtype=torch.complex64, generator=generator)


@pytest.mark.parametrize("top_k", [1, 2])
def test_what_is_not_in_the_track_of_tf_moe_is_the_same_for_every_input(top_k):
    separator = conditional(top_k=top_k)
    assert isinstance(separator, Conditional)
    fixed = set()
    for spectrum in spectra(3):
        total, track = counted(separator, spectrum)
        fixed.add(total - track.executed.sum().item())
    assert len(fixed) == 1
    # 4 mixture layers, 6 bands, two products between widths 8 and 32
    one_expert = torch.full((1, FRAMES), 4.0 * 6 * 2 * 8 * 32, dtype=torch.float64)
    assert torch.equal(track.executed, top_k * one_expert)
    assert torch.equal(track.densest, 4 * one_expert)


def test_theoretical_cost_of_tf_moe_is_that_of_all_experts():
    sparse, track = counted(conditional(top_k=2), spectra(1)[0])
    dense, dense_track = counted(conditional(top_k=4), spectra(1)[0])
    assert dense == sparse - track.executed.sum() + track.densest.sum()
    assert torch.equal(dense_track.executed, dense_track.densest)


def test_padded_frames_are_work_but_not_valid():
    _, track = counted(conditional(), spectra(1)[0], frames=15)
    assert track.valid.tolist() == [[True] * 15 + [False] * 6]
    assert (track.executed > 0).all()


def test_nothing_is_kept_unless_asked_for():
    separator = conditional()
    separator.record_cost = False
    separator(spectra(1)[0], torch.tensor([FRAMES]))
    assert separator.last_cost is None


class Slimming(nn.Module):
    """Multiplies loud frames by two matrices, quiet ones by one; says so in its track."""

    record_cost = False
    last_cost = None

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.eye(4))
        self.second = nn.Parameter(torch.eye(4))

    def forward(self, mixture):
        frames = mixture.view(-1, 4)  # (T, 4)
        loud = frames.abs().mean(1) > 0.1
        out = frames @ self.first
        out[loud] = out[loud] @ self.second
        if self.record_cost:
            densest = torch.full((1, len(frames)), 16.0, dtype=torch.float64)
            self.last_cost = CostTrack(densest * loud, densest, torch.ones_like(loud)[None])
        return [out.view(1, -1)] * 2


@pytest.fixture
def data_dir(tmp_path):
    """Two utterances of 1 s at 8 kHz: speaker 1 first quarter on, speaker 2 second half on."""
    soundfile = pytest.importorskip("soundfile")
    speaker1, speaker2 = np.zeros(FS, np.float32), np.zeros(FS, np.float32)
    speaker1[FS // 4 :] = 0.2
    speaker2[FS // 2 :] = 0.3
    signals = {"wav": speaker1 + speaker2, "spk1": speaker1, "spk2": speaker2}
    for name, signal in signals.items():
        for utterance in ("a", "b"):
            soundfile.write(tmp_path / f"{name}_{utterance}.wav", signal, FS, subtype="FLOAT")
        rows = "".join(f"{utterance} {tmp_path}/{name}_{utterance}.wav\n" for utterance in "ab")
        (tmp_path / f"{name}.scp").write_text(rows, encoding="utf-8")
    return tmp_path


def test_cost_over_a_set_by_number_of_speakers(data_dir):
    model = nn.Module()
    model.separator = Slimming()
    costs = measure_set(model, model.separator, data_dir, FS)
    assert not model.separator.record_cost
    frames = FS // 4
    summary = summarise(costs)
    assert summary["utterances"] == 2
    assert summary["seconds"] == pytest.approx(2.0)
    assert summary["theoretical"]["mean"] == 2 * 16 * frames
    assert summary["executed"]["mean"] == (16 + 0.75 * 16) * frames
    segments = summary["by_segment"]
    for name, share, multiple in (
        ("silence", 0.25, 1),
        ("one_speaker", 0.25, 2),
        ("overlap", 0.5, 2),
    ):
        assert segments[name]["seconds"] == pytest.approx(2 * share, abs=0.05)
        assert segments[name]["p50"] == 16 * frames * multiple
    weighted = sum(entry["seconds"] * entry["mean"] for entry in segments.values())
    assert weighted / 2 == pytest.approx(summary["executed"]["mean"])


def test_part_of_a_set_is_spread_over_it(data_dir):
    assert spread(list("abcdefgh"), 4) == list("aceg")
    assert spread(list("ab"), None) == spread(list("ab"), 9) == ["a", "b"]
    model = nn.Module()
    model.separator = Slimming()
    assert len(measure_set(model, model.separator, data_dir, FS, limit=1)) == 1


def test_a_set_without_references_is_refused(data_dir):
    model = nn.Module()
    model.separator = Slimming()
    (data_dir / "spk2.scp").write_text(f"a {data_dir}/spk2_a.wav\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"spk2\.scp: lacks 1 of the keys of wav.scp, first 'b'"):
        measure_set(model, model.separator, data_dir, FS)
    for name in ("spk1", "spk2"):
        (data_dir / f"{name}.scp").unlink()
    with pytest.raises(UserError, match=r"references in spk1\.scp"):
        measure_set(model, model.separator, data_dir, FS)


def test_unconditional_models_have_one_cost():
    assert conditional_separator(nn.Module()) is None
    assert theoretical_macs(100, None) == 100
