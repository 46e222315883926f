"""TF-Conformer and TF-MoE in the most literal form: 3-D modules, per-band loops, einsum, conv1d.

The reference of tests (values and gradients) and the yardstick of tools/bench_tf_moe.py. It reads
the parameters of a ``TFMoESeparator`` and supports everything but padding and dropout.

Legend: B batch, T frames, F bins, K bands, N channels, S speakers, R rows, L sequence length.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.conformer import ConformerModule, ConvModule
from espnet2_sepx.layers.moe import MoEFeedForward
from espnet2_sepx.layers.rnn import RNNModule
from espnet2_sepx.separators.tf_moe import TFMoESeparator

Module = TypeVar("Module", bound=nn.Module)


def as_if_trained(model: Module) -> Module:
    """The experts of ``model``, which all start the same, made different."""
    for layer in model.modules():
        if isinstance(layer, MoEFeedForward):
            for parameter in layer.parameters():
                parameter.data += 0.3 * parameter.std() * torch.randn_like(parameter)
    return model


def separate(model: TFMoESeparator, mixture: Tensor) -> tuple[list[Tensor], Tensor]:
    """Spectra of the speakers and the balance loss, for a complex ``(B, T, F)`` without padding."""
    frame_energy = 0.375 * 2 * (mixture.shape[2] - 1)  # of a Hann window: level is the waveform's
    level = (mixture.abs().square().mean((1, 2), keepdim=True) / frame_energy).sqrt()
    x = mixture / level
    z = band_split(model, torch.view_as_real(x))
    balance = z.new_zeros(())
    for block in model.blocks:
        for axis, module in block.items():
            z, loss = over_axis(module, z, axis)
            balance = balance + loss
    mask, residual = mask_decoder(model, z)
    masked = torch.view_as_complex(mask) * x[:, None] + torch.view_as_complex(residual)
    return list((masked * level[:, None]).unbind(1)), balance


def band_split(model: TFMoESeparator, x: Tensor) -> Tensor:
    """``(B, T, F, 2)`` to (B, T, K, N)."""
    layer, bands, row = model.band_split, [], 0
    for index, (first, last) in enumerate(model.bands):
        band = x[:, :, first : last + 1].flatten(2).transpose(1, 2)  # (B, 2w, T)
        rows = slice(row, row + band.shape[1])
        band = F.group_norm(band, 1, layer.norm_weight[rows], layer.norm_bias[rows])
        bands.append(F.linear(band.transpose(1, 2), layer.weight[rows].t(), layer.bias[index]))
        row = rows.stop
    return torch.stack(bands, 2)


def mask_decoder(model: TFMoESeparator, z: Tensor) -> list[Tensor]:
    """``(B, T, K, N)`` to masks and residuals, (B, S, T, F, 2) each."""
    layer, num_spk, num_bins = model.mask_decoder, model.num_spk, model.bands[-1][1] + 1
    outputs = []
    for part in range(2):
        total = z.new_zeros(z.shape[0], num_spk, z.shape[1], num_bins, 2)
        row = 0
        for place, band in enumerate(layer.order.tolist()):
            first, last = model.bands[band]
            rows = slice(row, row + 4 * num_spk * (last - first + 1))
            y = F.group_norm(
                z[:, :, band].transpose(1, 2),
                1,
                layer.norm_weight[part, place],
                layer.norm_bias[part, place],
            ).transpose(1, 2)
            y = torch.tanh(F.linear(y, layer.weight1[part, place].t(), layer.bias1[part, place]))
            y = F.glu(F.linear(y, layer.weight2[part, rows], layer.bias2[part, rows]), -1)
            y = y.unflatten(-1, (num_spk, last - first + 1, 2)).transpose(1, 2)
            total = total + F.pad(y, (0, 0, first, num_bins - 1 - last))
            row = rows.stop
        outputs.append(total)
    return outputs


def over_axis(module: torch.nn.Module, z: Tensor, axis: str) -> tuple[Tensor, Tensor]:
    """Fold the other axis into rows ``(R, L, N)``, apply, unfold; with the balance loss."""
    batch, frames, bands, _ = z.shape
    if isinstance(module, RNNModule):
        return z + rnn_branch(module, z, axis), z.new_zeros(())
    assert isinstance(module, ConformerModule)
    rows = (z.transpose(1, 2) if axis == "time" else z).flatten(0, 1)
    rows, loss = conformer(module, rows.contiguous())
    if axis == "time":
        return rows.unflatten(0, (batch, bands)).transpose(1, 2).contiguous(), loss
    return rows.unflatten(0, (batch, frames)), loss


def conformer(module: ConformerModule, x: Tensor) -> tuple[Tensor, Tensor]:
    y, loss1 = feed_forward(module.ffn1, module.norm_ffn1(x))
    x = x + 0.5 * y
    x = x + attention(module.attention, module.norm_attention(x))
    x = x + convolution(module.conv, module.norm_conv(x))
    y, loss2 = feed_forward(module.ffn2, module.norm_ffn2(x))
    return module.norm_out(x + 0.5 * y), loss1 + loss2


def feed_forward(ffn: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(ffn, MoEFeedForward):
        return ffn.linear2(F.silu(ffn.linear1(x))), x.new_zeros(())
    y, expert, prob = mixture(ffn, x.flatten(0, 1))
    expert, prob = (t.unflatten(0, x.shape[:2]) for t in (expert, prob))
    chosen = F.one_hot(expert, prob.shape[-1]).sum(-2).to(x.dtype)
    dims = (1,) if ffn.balance_scope == "sequence" else (0, 1)
    frequency = chosen.mean(dims) * prob.shape[-1] / ffn.top_k
    return y.view(x.shape), (frequency * prob.mean(dims)).sum(-1).mean()


def mixture(ffn: MoEFeedForward, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(n, N)`` to outputs (n, N), chosen experts (n, J), probabilities (n, E): expert by expert,
    with masks."""
    prob = torch.softmax(F.linear(x, ffn.router), -1)
    top, chosen = prob.topk(ffn.top_k, -1)
    gate = top
    if ffn.top_k > 1:
        gate = top / top.sum(-1, keepdim=True)
    elif ffn.gate != "prob":
        gate = top / (top.detach() if ffn.gate == "straight_through" else top)
    out = torch.zeros_like(x)
    for expert, (w1, b1, w2, b2) in enumerate(
        zip(ffn.weight1, ffn.bias1, ffn.weight2, ffn.bias2, strict=True)
    ):
        token, choice = torch.nonzero(chosen == expert, as_tuple=True)
        y = F.linear(F.silu(F.linear(x[token], w1, b1)), w2, b2)
        out = out.index_add(0, token, y * gate[token, choice, None])
    return out, chosen, prob


def attention(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """Scores by einsum over the gathered table ``(L, L, d)``."""
    length = x.shape[1]
    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.num_heads, layer.head_dim)).unbind(2)
    clip = layer.rel_pos.shape[0] // 2
    at = torch.arange(length)
    relative = layer.rel_pos[(at[:, None] - at).clamp(-clip, clip) + clip]
    scores = torch.einsum("rihd,rjhd->rhij", q, k) + torch.einsum("rihd,ijd->rhij", q, relative)
    weights = torch.softmax(scores / layer.head_dim**0.5, -1)
    return layer.out(torch.einsum("rhij,rjhd->rihd", weights, v).flatten(2))


def convolution(layer: ConvModule, x: Tensor) -> Tensor:
    y = F.glu(layer.pointwise1(x), -1).transpose(1, 2)  # (R, C, L)
    depthwise, norm = layer.depthwise, layer.norm
    kernel = depthwise.weight.shape[-1]
    y = F.conv1d(y, depthwise.weight, depthwise.bias, padding=kernel // 2, groups=y.shape[1])
    y = F.batch_norm(
        y,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        norm.momentum,
        norm.eps,
    )
    return layer.pointwise2(F.silu(y).transpose(1, 2))


def rnn_branch(module: RNNModule, z: Tensor, axis: str) -> Tensor:
    y = F.group_norm(z.movedim(-1, 1), 1, module.norm_weight, module.norm_bias).movedim(1, -1)
    y = y.transpose(1, 2) if axis == "time" else y
    y = module.linear(module.rnn(y.flatten(0, 1))[0]).unflatten(0, y.shape[:2])
    return y.transpose(1, 2) if axis == "time" else y
