"""Executed and theoretical work of separators that skip some of it."""

import pytest
import torch
from profiling_configs import small_tf_moe

from espnet2_sepx.layers.cost_track import Conditional
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import build_model

FRAMES, BINS = 21, 65


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
