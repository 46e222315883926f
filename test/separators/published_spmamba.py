"""The published SPMamba, written down as its arithmetic reads: waveform in, waveforms out.

Slow and literal, in the dtype of the weights; nothing of the package is used. ``state`` is a state
dict in the published naming.

Legend: T frames, Q bins, D embedding channels, I window, J hop, E queries per bin.
"""

import math

import torch
import torch.nn.functional as F


def mixer(state, name, x):
    """x (batch, length, channels)"""

    def weight(part):
        return state[f"{name}.{part}"]

    inner, states = weight("A_log").shape
    rank = weight("dt_proj.weight").shape[1]
    taps = weight("conv1d.weight").shape[2]
    u, z = (x @ weight("in_proj.weight").T).split(inner, dim=-1)
    length = u.shape[1]
    u = F.conv1d(
        u.transpose(1, 2), weight("conv1d.weight"), weight("conv1d.bias"), 1, taps - 1, 1, inner
    )
    u = F.silu(u[..., :length]).transpose(1, 2)
    dt, B, C = (u @ weight("x_proj.weight").T).split([rank, states, states], dim=-1)
    dt = dt @ weight("dt_proj.weight").T + weight("dt_proj.bias")
    dt = torch.log1p(torch.exp(dt))
    A = -torch.exp(weight("A_log"))
    h = torch.zeros(x.shape[0], inner, states, dtype=x.dtype)
    outputs = []
    for t in range(length):
        h = torch.exp(dt[:, t, :, None] * A) * h + (
            dt[:, t, :, None] * B[:, t, None, :] * u[:, t, :, None]
        )
        outputs.append((h * C[:, t, None, :]).sum(-1) + weight("D") * u[:, t])
    y = torch.stack(outputs, 1) * F.silu(z)
    return y @ weight("out_proj.weight").T


def both_ways(state, name, x, eps):
    outputs = []
    for direction in ("forward", "backward"):
        y = x.flip(1) if direction == "backward" else x
        layer = 0
        while f"{name}.{direction}_blocks.{layer}.norm.weight" in state:
            block = f"{name}.{direction}_blocks.{layer}"
            rms = torch.sqrt((y * y).mean(-1, keepdim=True) + eps)
            y = y + mixer(state, f"{block}.mixer", y / rms * state[f"{block}.norm.weight"])
            layer += 1
        outputs.append(y.flip(1) if direction == "backward" else y)
    return torch.cat(outputs, -1)


def blstm(state, name, x):
    """Gate by gate, in both directions."""
    outputs = []
    for suffix in ("", "_reverse"):
        w_x, w_h = state[f"{name}.weight_ih_l0{suffix}"], state[f"{name}.weight_hh_l0{suffix}"]
        bias = state[f"{name}.bias_ih_l0{suffix}"] + state[f"{name}.bias_hh_l0{suffix}"]
        h = c = torch.zeros(x.shape[0], w_h.shape[1], dtype=x.dtype)
        steps = range(x.shape[1])
        found = {}
        for t in reversed(steps) if suffix else steps:
            i, f, g, o = (x[:, t] @ w_x.T + h @ w_h.T + bias).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            found[t] = h
        outputs.append(torch.stack([found[t] for t in steps], 1))
    return torch.cat(outputs, -1)


def path(state, block, axis, x, window, hop, eps):
    """x (batch, D, length) per sequence; the residual is added by the caller."""
    columns = F.unfold(x[..., None], (window, 1), stride=(hop, 1)).transpose(1, 2)
    if f"{block}.{axis}_rnn.weight_ih_l0" in state:
        y = blstm(state, f"{block}.{axis}_rnn", columns)
    else:
        y = both_ways(state, f"{block}.{axis}_mamba", columns, eps)
    return F.conv_transpose1d(
        y.transpose(1, 2),
        state[f"{block}.{axis}_linear.weight"],
        state[f"{block}.{axis}_linear.bias"],
        stride=hop,
    )


def normalise(x, dims, state, name, eps):
    mean = x.mean(dims, keepdim=True)
    variance = ((x - mean) ** 2).mean(dims, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * state[f"{name}.gamma"] + state[f"{name}.beta"]


def projection(state, name, x, eps):
    y = F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"])
    y = torch.where(y > 0, y, state[f"{name}.1.weight"] * y)
    return normalise(y, (1, 3), state, f"{name}.2", eps)


def grid_block(state, name, x, window, hop, heads, eps):
    """x (1, D, T, Q)"""
    old_T, old_Q = x.shape[2:]
    T, Q = (max(math.ceil((size - window) / hop), 0) * hop + window for size in (old_T, old_Q))
    x = F.pad(x, (0, Q - old_Q, 0, T - old_T))
    y = normalise(x, (1,), state, f"{name}.intra_norm", eps)
    y = path(state, name, "intra", y[0].transpose(0, 1), window, hop, eps)  # (T, D, Q)
    x = x + y.transpose(0, 1)[None]
    y = normalise(x, (1,), state, f"{name}.inter_norm", eps)
    y = path(state, name, "inter", y[0].permute(2, 0, 1), window, hop, eps)  # (Q, D, T)
    x = x + y.permute(1, 2, 0)[None]
    x = x[:, :, :old_T, :old_Q]
    found = []
    for head in range(heads):
        q, k, v = (projection(state, f"{name}.attn_conv_{part}_{head}", x, eps) for part in "QKV")
        q, k = (y[0].transpose(0, 1).flatten(1) for y in (q, k))  # (T, E Q)
        weights = torch.softmax(q @ k.T / math.sqrt(q.shape[1]), -1)
        y = weights @ v[0].transpose(0, 1).flatten(1)
        found.append(y.view(old_T, -1, old_Q).transpose(0, 1))
    return x + projection(state, f"{name}.attn_concat_proj", torch.cat(found)[None], eps)


def separate(state, wave, n_fft, hop_length, window=8, hop=1, heads=4, eps=1e-5):
    """wave (samples,) to (speakers, samples)."""
    samples = wave.shape[0]
    level = wave.std()
    hann = torch.hann_window(n_fft, dtype=wave.dtype)
    spectrum = torch.stft(wave / level, n_fft, hop_length, window=hann, return_complex=True)
    x = torch.stack((spectrum.real, spectrum.imag)).transpose(1, 2)[None]  # (1, 2, T, Q)
    x = F.conv2d(x, state["conv.0.weight"], state["conv.0.bias"], padding=1)
    mean, variance = x.mean(), x.var(unbiased=False)
    x = (x - mean) / torch.sqrt(variance + eps)
    x = x * state["conv.1.weight"][:, None, None] + state["conv.1.bias"][:, None, None]
    block = 0
    while f"blocks.{block}.intra_norm.gamma" in state:
        x = grid_block(state, f"blocks.{block}", x, window, hop, heads, eps)
        block += 1
    x = F.conv_transpose2d(x, state["deconv.weight"], state["deconv.bias"], padding=1)[0]
    spectra = torch.complex(x[0::2], x[1::2]).transpose(1, 2)  # (speakers, Q, T)
    return level * torch.istft(spectra, n_fft, hop_length, window=hann, length=samples)
