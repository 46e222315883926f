"""Bands of the paper's set-up, and what band lists must satisfy."""

from __future__ import annotations

import pytest
import torch

from espnet2_sepx.layers.band_split import BandSplit, MaskDecoder, check_bands, mel_bands
from espnet2_sepx.layers.norms import Padding

WIDTHS = [
    *(3, 2, 2, 2, 3, 3, 2, 2, 2, 3, 3, 2, 2, 2, 3, 3, 2, 2, 2, 3, 3, 2, 2, 2, 2, 3, 3, 2, 3, 3),
    *(2, 3, 4, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 6, 5, 5, 6, 7, 7, 6, 7, 8, 7, 7, 8, 9, 9),
    *(9, 10, 10, 10, 10, 11, 12, 12, 12, 13, 14, 14, 14, 15, 16, 16, 17, 18, 18, 19),
]


def test_bands_of_the_paper() -> None:
    bands = mel_bands(257, 80, 16000)
    assert [last - first + 1 for first, last in bands] == WIDTHS
    assert sum(WIDTHS) == 502
    coverage = torch.zeros(257, dtype=torch.long)
    for first, last in bands:
        coverage[first : last + 1] += 1
    assert torch.bincount(coverage).tolist() == [0, 12, 245]
    assert bands[0][0] == 0
    assert bands[-1][1] == 256


def test_too_many_bands_for_the_resolution() -> None:
    with pytest.raises(ValueError, match=r"num_bands=60 .*fewer bands or a longer FFT"):
        mel_bands(33, 60, 8000)


def test_check_bands() -> None:
    assert check_bands([[0, 3], [2, 5]], 6) == ((0, 3), (2, 5))
    for bad in ([[0, 6]], [[3, 2]], [[-1, 5]], [[0]]):
        with pytest.raises(ValueError, match=r"within 0\.\.5"):
            check_bands(bad, 6)
    with pytest.raises(ValueError, match="bin 3 is in no band"):
        check_bands([[0, 2], [4, 5]], 6)


@pytest.mark.parametrize("channels", [30, 32])
def test_parameter_counts(channels) -> None:
    bands = mel_bands(257, 80, 16000)
    split, decoder = BandSplit(bands, channels), MaskDecoder(bands, channels, 2)
    count = sum(p.numel() for p in split.parameters())
    assert count == 502 * (4 + 2 * channels) + 80 * channels
    count = sum(p.numel() for p in decoder.parameters())
    assert count == 2 * (80 * (4 * channels**2 + 6 * channels) + 4016 * (4 * channels + 1))


def test_folded_weights_are_kept_in_inference_only_and_dropped_on_change() -> None:
    layer = BandSplit(((0, 1), (1, 4)), 3).eval()
    x = torch.randn(1, 6, 5, 2)
    with torch.no_grad():
        before = layer(x)
        layer.norm_weight.mul_(2.0)
        assert torch.equal(layer(x), before)  # an edit by hand goes unnoticed ...
        assert not torch.allclose(layer.eval()(x), before)  # ... until eval() is called
        layer.load_state_dict({k: v / 2 for k, v in layer.state_dict().items()})
        after = layer(x)
    torch.testing.assert_close(layer(x), after)  # with gradients nothing is kept
    layer(x).sum().backward()
    assert layer.norm_weight.grad is not None


def test_widest_and_narrowest_bands_do_not_mix() -> None:
    layer = BandSplit(((0, 0), (0, 4)), 3).double()
    x = torch.randn(1, 6, 5, 2, dtype=torch.double)
    other = x.clone()
    other[:, :, 3] += 1.0
    difference = (layer(x) - layer(other)).abs().amax((0, 1, 3))
    assert difference[0] == 0
    assert difference[1] > 0


def test_padding_object() -> None:
    assert Padding.from_lengths(torch.tensor([4, 4]), 4) is None
    padding = Padding.from_lengths(torch.tensor([4, 1]), 4)
    assert padding.lengths == (4, 1)
    assert padding.valid.sum().item() == 5
    for lengths in ([5], [0]):
        with pytest.raises(ValueError, match="ilens"):
            Padding.from_lengths(torch.tensor(lengths), 4)
