"""A DSN in training: the price of width, against what width is worth to the separation."""

import pytest
import torch

from espnet2_sepx.losses.complexity import DSNComplexity
from espnet2_sepx.separators.dsn import DSNSeparator

FS, SAMPLES, N_FFT, HOP = 8000, 8000, 254, 64
SMALL = {
    "levels": (0.125, 1.0),
    "num_blocks": 1,
    "intra_layers": 1,
    "inter_layers": 1,
    "ffn_dim": 256,
    "chunk_size": 24,
    "gate_dim": 16,
    "gate_ffn_dim": 32,
    "gate_pool_frames": 8,
}


def voices(pitch, count=16):
    """Gliding harmonics in syllables, (count, N)."""
    time = torch.arange(SAMPLES) / FS
    start = torch.rand(count, 1)
    glide = pitch * (1 + 0.1 * torch.sin(2 * torch.pi * (1.7 * time + start)))
    phase = 2 * torch.pi * glide.cumsum(1) / FS
    syllables = (torch.sin(2 * torch.pi * (2.6 * time + 3 * start)) * 3 + 1.2).clamp(0, 1)
    return syllables * sum(torch.sin(n * phase) / n for n in range(1, int(0.45 * FS / pitch)))


def si_sdr(reference, estimate):
    scale = (reference * estimate).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True)
    error = (estimate - scale * reference).square().sum(-1)
    return 10 * ((scale * reference).square().sum(-1) / error).log10()


def used_after_training(alpha, steps):
    """Mean utilisation of the gate."""
    torch.manual_seed(0)
    window = torch.hann_window(N_FFT)
    sources = torch.stack((voices(110), voices(200)))  # (J, count, N)
    spectrum = torch.stft(sources.sum(0), N_FFT, HOP, window=window, return_complex=True)
    spectrum = spectrum.transpose(1, 2)
    model = DSNSeparator(N_FFT // 2 + 1, **SMALL)
    price = DSNComplexity(mode="si", kernel_size=0, stride=HOP)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        chosen = torch.randperm(sources.shape[1])[:4]
        lengths = torch.full((4,), spectrum.shape[1])
        outputs, _, others = model(spectrum[chosen], lengths)
        waves = [
            torch.istft(y.transpose(1, 2), N_FFT, HOP, window=window, length=SAMPLES)
            for y in outputs
        ]
        references = list(sources[:, chosen])
        quality = sum(si_sdr(r, w) for r, w in zip(references, waves, strict=True)) / 2
        loss = alpha * price(references, waves, others).mean() - quality.mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    with torch.no_grad():
        _, _, others = model.eval()(spectrum, torch.full((len(spectrum),), spectrum.shape[1]))
    return others["dsn_utilization"].mean().item()


@pytest.mark.slow
def test_signal_independent_loss_goes_to_either_end():
    """As in Figs. 5 and 6 of the paper: alpha 10 leaves nothing but the price, 0.01 hardly any."""
    assert used_after_training(10.0, steps=50) < 0.15
    assert used_after_training(0.01, steps=150) > 0.75
