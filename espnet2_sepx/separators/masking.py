"""What separators share that estimate one mask per output over an encoder's features.

Legend: B batch, T frames, F channels, J outputs (speakers, and one for noise if it is estimated).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from espnet2.enh.layers.complex_utils import is_complex
from torch import Tensor

from espnet2_sepx.layers.norms import Padding

NONLINEAR = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
LEVEL_FLOOR = 1e-8


def check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_one_of(choices: tuple, **values: object) -> None:
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def magnitude(x: Tensor) -> Tensor:
    """Of a spectrum; real features stay as they are."""
    return abs(x) if is_complex(x) else x


def features(input: Tensor, ilens: Tensor) -> tuple[Tensor, Tensor, Padding | None]:
    """The input, and real features of it (magnitudes of a spectrum), zero on padded frames."""
    padding = Padding.from_lengths(ilens, input.shape[1])
    if padding is not None:
        input = input * padding.valid[:, :, None]
    return input, magnitude(input), padding


def level_of(x: Tensor, padding: Padding | None) -> Tensor:
    """Root mean square of each item's valid frames, ``(B, 1, 1)``, for ``x (B, T, F)``."""
    power = (
        x.to(torch.promote_types(x.dtype, torch.float32)).square().sum((1, 2), keepdim=True)
        / x.shape[2]
    )
    if padding is None:
        power = power / x.shape[1]
    else:
        power = power / power.new_tensor(padding.lengths)[:, None, None]
    return power.sqrt().clamp_min(LEVEL_FLOOR).to(x.dtype)


def gated_tanh(value: Tensor, gate: Tensor) -> Tensor:
    """tanh(value) sigmoid(gate). Outside of a graph both are overwritten, and tanh(x) is
    2 sigmoid(2 x) - 1: PyTorch's sigmoid is many times faster on a CPU."""
    if torch.is_grad_enabled():
        return value.tanh() * gate.sigmoid()
    return value.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0).mul_(gate.sigmoid_())


def apply_masks(
    input: Tensor, masks: list[Tensor], num_spk: int
) -> tuple[list[Tensor], OrderedDict[str, Tensor]]:
    """Masked features of the speakers, and ``others``: ``mask_spk{n}`` detached, ``noise1`` if
    there is one mask more than speakers."""
    outputs = [input * mask for mask in masks]
    others = OrderedDict((f"mask_spk{n}", m.detach()) for n, m in enumerate(masks[:num_spk], 1))
    if len(masks) > num_spk:
        others["noise1"] = outputs[num_spk]
    return outputs[:num_spk], others
