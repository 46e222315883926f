"""S4M written down literally, as reference: channels before frames, dense state spaces, no FFT.

Everything takes the parameters of our modules, in their dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_state_space(space) -> tuple[Tensor, Tensor, Tensor]:
    """dA (H, S, S), dB (H, S), C (D, H, S) over all S conjugate-symmetric complex states."""

    def both(half: Tensor) -> Tensor:
        return torch.cat((half, half.conj()), -1)

    w = both(torch.complex(-space.log_decay.double().exp(), space.frequency.double()))
    B = both(torch.view_as_complex(space.B.double())[0])
    C = both(torch.view_as_complex(space.C.double()))
    dt = space.log_dt.double().exp()[:, None]
    if not hasattr(space, "P"):  # zero-order hold
        growth = (dt * w).exp()
        return torch.diag_embed(growth), (growth - 1) / w * B, C
    P = both(torch.view_as_complex(space.P.double())[0])
    A = torch.diag_embed(w) - P[:, :, None] * P.conj()[:, None]
    eye, half_step = torch.eye(A.shape[-1], dtype=A.dtype), dt[..., None] / 2
    backward = eye - half_step * A
    dA = torch.linalg.solve(backward, eye + half_step * A)
    return dA, torch.linalg.solve(backward, (dt * B)[..., None])[..., 0], C


def kernel(space, length: int) -> Tensor:
    """C dA^l dB for l < length, (D, H, length), by the recurrence in float64."""
    dA, state, C = dense_state_space(space)
    values = []
    for _ in range(length):
        values.append((C * state).sum(-1).real)
        state = (dA @ state[..., None])[..., 0]
    return torch.stack(values, -1)


def s4(layer, u: Tensor) -> Tensor:
    """(B, H, L) -> (B, H, L), a sum over all pairs of frames."""
    length = u.shape[-1]
    k = kernel(layer.space, length).to(u.dtype)
    lag = torch.arange(length)[:, None] - torch.arange(length)
    taps = torch.where(lag >= 0, k[0][:, lag.clamp_min(0)], 0.0)
    if layer.bidirectional:
        taps = taps + torch.where(lag < 0, k[1][:, (-lag - 1).clamp_min(0)], 0.0)
    y = torch.einsum("hts,bhs->bht", taps, u) + layer.D[0, :, None] * u
    return F.glu(conv1x1(layer.out, F.gelu(y)), 1)


def conv1x1(linear, x: Tensor) -> Tensor:
    return F.conv1d(x, linear.weight[..., None], linear.bias)


def depthwise(conv, x: Tensor) -> Tensor:
    padding = conv.weight.shape[-1] // 2
    return F.conv1d(x, conv.weight, conv.bias, conv.stride, padding, groups=x.shape[1])


def norm(module, x: Tensor) -> Tensor:
    return F.group_norm(x, 1, module.weight, module.bias, module.eps)


def layer_norm(module, x: Tensor) -> Tensor:
    return module(x.transpose(1, 2)).transpose(1, 2)


def local_attention(module, local: Tensor, coarse: Tensor) -> Tensor:
    def normed(name: str, x: Tensor) -> Tensor:
        return norm(module.norm[name], depthwise(module.conv[name], x))

    size = local.shape[-1]
    gate = F.interpolate(normed("gate", coarse).sigmoid(), size=size)  # nearest
    shift = F.interpolate(normed("shift", coarse), size=size)  # nearest
    return normed("local", local) * gate + shift


def block(module, x: Tensor) -> Tensor:
    y = F.prelu(norm(module.proj_norm, conv1x1(module.proj, x)), module.proj_act.weight)
    c = []
    for conv, own_norm in zip(module.down, module.down_norm, strict=True):
        y = norm(own_norm, depthwise(conv, y))
        c.append(y)
    g = c[3] + sum(F.adaptive_avg_pool1d(c[i], c[3].shape[-1]) for i in range(3))
    if module.mid is not None:
        g = g + s4(module.mid.s4, layer_norm(module.mid.norm, g))
        ln, first, act, second = module.mid.ffn
        g = g + conv1x1(second, act(conv1x1(first, layer_norm(ln, g))))
    f = [local_attention(module.fuse[i], c[i], g) for i in range(4)]
    e = f[1] if module.legacy_top_fusion else f[3]
    for i in (2, 1, 0):
        e = local_attention(module.up[i], f[i], e)
        if module.up_s4 is not None:
            e = e + s4(module.up_s4[i].s4, layer_norm(module.up_s4[i].norm, e))
    return conv1x1(module.res, e) + x


def separate(model, wave: Tensor) -> list[Tensor]:
    """(B, N) -> S times (B, N)."""
    window, hop, samples = model.filterbank.window, model.filterbank.hop, wave.shape[1]
    rest = window - (hop + samples % window) % window
    padded = F.pad(wave, (window - hop, rest + window - hop))
    encoder, decoder = model.filterbank.encoder, model.filterbank.decoder
    E = F.conv1d(padded[:, None], encoder.weight, stride=hop, padding=window // 2)
    x0 = conv1x1(model.bottleneck, norm(model.input_norm, E))
    x = block(model.block, x0)
    for _ in range(model.num_repeats - 1):
        between = depthwise(model.repeat_conv, x0 + x)
        x = block(model.block, F.prelu(between, model.repeat_act.weight))
    mask = F.relu(conv1x1(model.mask, F.prelu(x, model.mask_act.weight)))
    masked = mask.unflatten(1, (model.num_spk, -1)) * E[:, None]
    waves = F.conv_transpose1d(
        masked.flatten(1, 2), decoder.weight, stride=hop, padding=window // 2
    )
    return list(waves[..., window - hop : window - hop + samples].unbind(1))
