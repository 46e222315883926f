"""Segmentation: round trips, counts of the paper's code, and norms that skip padding."""

from __future__ import annotations

import pytest
import torch

from espnet2_sepx.layers.dual_path import GlobalNorm, Segmentation


@pytest.mark.parametrize("pad_mode", ["always", "minimal"])
@pytest.mark.parametrize(("size", "overlap"), [(6, 0.5), (2, 0.5), (5, 0), (1, 0)])
def test_round_trip(size, overlap, pad_mode) -> None:
    segmentation = Segmentation(size, overlap, pad_mode)
    for frames in range(1, 3 * size + 2):
        x = torch.randn(2, frames, 3)
        chunks = segmentation.split(x)
        assert chunks.shape == (2, segmentation.num_chunks(frames), size, 3)
        assert torch.equal(segmentation.merge(chunks, frames), 2 * x if overlap else x)


def literal_split(x: torch.Tensor, size: int) -> torch.Tensor:
    """Overlapping chunks of (B, T, F) as two interleaved rows of blocks (Luo et al.)."""
    hop = size // 2
    gap = size - (hop + x.shape[1] % size) % size
    x = torch.nn.functional.pad(x, (0, 0, hop, gap + hop))
    one, two = x[:, :-hop].unflatten(1, (-1, size)), x[:, hop:].unflatten(1, (-1, size))
    return torch.stack((one, two), 2).flatten(1, 2)


def test_overlapping_chunks_are_those_of_the_literal_rule() -> None:
    segmentation = Segmentation(6, 0.5)
    for frames in range(1, 20):
        x = torch.randn(1, frames, 2)
        assert torch.equal(segmentation.split(x), literal_split(x, 6))


def test_always_pads_at_least_one_frame_and_minimal_as_few_as_possible() -> None:
    always, minimal = Segmentation(4, 0), Segmentation(4, 0, "minimal")
    assert [always.num_chunks(t) for t in (1, 3, 4, 7, 8)] == [1, 1, 2, 2, 3]
    assert [minimal.num_chunks(t) for t in (1, 3, 4, 7, 8)] == [1, 1, 1, 2, 2]
    overlapping = Segmentation(4, 0.5, "minimal")
    assert [overlapping.num_chunks(t) for t in (1, 2, 3, 4)] == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((5, 0.5), "chunk_size"),
        ((0, 0), "chunk_size"),
        ((4, 0.25), "overlap"),
        ((4, 0, "x"), "pad"),
    ],
)
def test_bad_values_are_named(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        Segmentation(*arguments)


def test_global_norm_is_group_norm_and_skips_padding() -> None:
    norm = GlobalNorm(3, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 7, 3, dtype=torch.double)
    expected = torch.nn.functional.group_norm(x.transpose(1, 2), 1, norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(norm(x), expected.transpose(1, 2))
    torch.testing.assert_close(norm(x, (7, 4))[1, :4], norm(x[1:, :4])[0])
    assert norm(torch.zeros_like(x), (7, 4)).isfinite().all()
