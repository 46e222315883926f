"""S4M: the contract on waveforms and features, the literal formulation, and the paper's counts."""

from __future__ import annotations

import json
from pathlib import Path

import plain_s4m
import pytest
import torch
from contract import SeparatorContract

from espnet2_sepx.separators.s4m import S4MSeparator

TINY = {
    "sample_rate": 8000,
    "bottleneck_dim": 6,
    "hidden_dim": 10,
    "num_repeats": 2,
    "state_dim": 4,
}
CAUSAL = {"causal": True, "bidirectional": False}


def build(input_dim: int = 1, **options) -> S4MSeparator:
    return S4MSeparator(input_dim, **{**TINY, **options})


def waves(batch: int, samples: int) -> torch.Tensor:
    return torch.randn(batch, samples, dtype=torch.double)


def features(batch: int, frames: int) -> torch.Tensor:
    return torch.randn(batch, frames, 9, dtype=torch.double)


def run(model, x, lengths=None):
    return model(x, torch.tensor(lengths or [x.shape[1]] * x.shape[0]))


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


class TestWaveforms(SeparatorContract):
    def build(self, **options):
        return build(**options)

    def mixture(self, batch, frames):
        return waves(batch, frames)


class TestFull(TestWaveforms):
    num_spk = 3

    def build(self, **options):
        return build(num_spk=3, decoder_s4=True, **options)


class TestFeatures(SeparatorContract):
    def build(self, **options):
        return build(9, kernel="diag", decoder_s4=True, **options)

    def mixture(self, batch, frames):
        return features(batch, frames)


class TestCausal(TestFeatures):
    def build(self, **options):
        return build(9, decoder_s4=True, **CAUSAL, **options)


class TestWithoutS4(TestWaveforms):
    def build(self, **options):
        return build(mid="none", num_scales=3, **options)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"mid": "none"}, 223_559),
        ({"state_dim": 8}, 1_822_535),
        ({}, 1_843_015),
        ({"state_dim": 32}, 1_883_975),
        ({"decoder_s4": True}, 3_547_975),
        ({"sample_rate": 8000}, 1_828_967),
        ({"sample_rate": 8000, "decoder_s4": True}, 3_533_927),
        ({"kernel": "diag"}, 1_834_823),
        ({"kernel": "diag", "decoder_s4": True}, 3_515_207),
        ({"bidirectional": False}, 1_834_823),
        ({"bidirectional": False, "decoder_s4": True}, 3_515_207),
    ],
    ids=str,
)
def test_parameters(options, parameters) -> None:
    assert sum(p.numel() for p in S4MSeparator(1, **options).parameters()) == parameters


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ("lrs2_2mix/s4m/conf/train_s4m_tiny_wo_s4.yaml", 223_559),
        ("lrs2_2mix/s4m/conf/train_s4m_tiny_n8.yaml", 1_822_535),
        ("lrs2_2mix/s4m/conf/train_s4m_tiny.yaml", 1_843_015),
        ("lrs2_2mix/s4m/conf/train_s4m_tiny_n32.yaml", 1_883_975),
        ("lrs2_2mix/s4m/conf/train_s4m.yaml", 3_547_975),
        ("wsj0_2mix/s4m/conf/train_s4m_tiny.yaml", 1_828_967),
        ("wsj0_2mix/s4m/conf/train_s4m.yaml", 3_533_927),
        ("libri2mix/s4m/conf/train_s4m_tiny.yaml", 1_828_967),
        ("libri2mix/s4m/conf/train_s4m.yaml", 3_533_927),
    ],
)
def test_rows_of_the_paper(config, parameters) -> None:
    """The files are built in test_configs.py; this is what they must give."""
    root = Path(__file__).resolve().parents[2]
    golden = json.loads((root / "test" / "golden" / "models.json").read_text())
    assert golden[f"egs2/{config}"]["parameters"] == parameters


def test_parameters_with_espnets_filterbank() -> None:
    separator = S4MSeparator(33)
    assert sum(p.numel() for p in separator.parameters()) + 2 * 33 * 64 == 1_836_679


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder_s4": True},
        {"kernel": "diag", "bidirectional": False},
        {"mid": "none"},
        {"legacy_top_fusion": True},
    ],
    ids=str,
)
def test_equals_the_literal_formulation(options) -> None:
    torch.manual_seed(1)
    model = build(**options).double()
    x = waves(2, 501)
    results = []
    for separate in (lambda: run(model, x)[0], lambda: plain_s4m.separate(model, x)):
        model.zero_grad()
        outputs = separate()
        sum(y.square().sum() for y in outputs).backward()
        results.append((outputs, [p.grad for p in model.parameters() if p.grad is not None]))
    (ours, gradients), (theirs, their_gradients) = results
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    for a, b in zip(gradients, their_gradients, strict=True):
        assert relative(a, b) < 1e-7


def test_float32_inference_of_the_papers_size_equals_the_literal_formulation() -> None:
    model = S4MSeparator(1, num_repeats=3, decoder_s4=True).eval()
    x = torch.randn(1, 3000)
    with torch.no_grad():
        for a, b in zip(run(model, x)[0], plain_s4m.separate(model, x), strict=True):
            assert relative(a, b) < 2e-5


@pytest.mark.parametrize("samples", [1, 17, 64, 100, 8005, 15999, 16000, 16001])
def test_lengths(samples) -> None:
    model = build(sample_rate=16000).double().eval()
    with torch.no_grad():
        outputs, _, others = run(model, waves(1, samples))
    assert all(y.shape == (1, samples) for y in outputs)
    assert others["mask_spk2"].shape[1:] == (model.filterbank.num_frames(samples), 33)
    assert model.filterbank.num_frames(16000) == 1010


@pytest.mark.parametrize("input_dim", [1, 9])
def test_gain_equivariance_and_silence(input_dim) -> None:
    options = {"sample_rate": 16000, "hidden_dim": 32, "decoder_s4": True}
    model = build(input_dim, **options).eval()
    x = (waves(1, 2000) if input_dim == 1 else features(1, 200)).float()
    with torch.no_grad():
        reference = run(model, x)[0]
        for gain in (1e-3, 1e3):
            for y, z in zip(reference, run(model, gain * x)[0], strict=True):
                assert relative(z, gain * y) < 1e-4
        model.double()
        for y, z in zip(run(model, x.double())[0], run(model, 0.1 * x.double())[0], strict=True):
            assert relative(z, 0.1 * y) < 1e-5
    batch = torch.cat([x, torch.zeros_like(x)]).double().requires_grad_()
    outputs = run(model, batch)[0]
    assert all(y[1].abs().max() == 0 for y in outputs)
    sum(y.square().sum() for y in outputs).backward()
    assert batch.grad.isfinite().all()


def test_published_wiring_leaves_the_coarsest_fusion_without_gradient() -> None:
    for legacy in (False, True):
        model = build(legacy_top_fusion=legacy).double()
        sum(y.square().sum() for y in run(model, waves(1, 300))[0]).backward()
        without = {name for name, p in model.named_parameters() if p.grad is None}
        coarsest = {name for name, _ in model.named_parameters() if name.startswith("block.fuse.3")}
        assert len(coarsest) == 9
        assert without == (coarsest if legacy else set())


def test_more_repeats_share_the_weights() -> None:
    one, four = build(num_repeats=1), build(num_repeats=4)
    assert one.state_dict().keys() == four.state_dict().keys()
    four.load_state_dict(one.state_dict())
    x = torch.randn(1, 200)
    with torch.no_grad():
        assert not torch.allclose(run(one, x)[0][0], run(four, x)[0][0])


@pytest.mark.parametrize("kernel", ["dplr", "diag"])
@pytest.mark.parametrize("sizes", [[1] * 45, [7] * 6 + [3], [32, 13], [44, 1]])
def test_streaming_equals_offline(kernel, sizes) -> None:
    model = build(9, kernel=kernel, decoder_s4=True, **CAUSAL).double().eval()
    x = features(2, 45)
    state, outputs, masks = None, [], []
    with torch.no_grad():
        whole, _, others = run(model, x)
        for chunk in x.split(sizes, 1):
            before = state
            y, state, parts = model.forward_streaming(chunk, before)
            if before is not None:  # the state given can be used again
                again = model.forward_streaming(chunk, before)[0]
                assert all(torch.equal(a, b) for a, b in zip(y, again, strict=True))
            outputs.append(torch.stack(y))
            masks.append(parts["mask_spk1"])
    torch.testing.assert_close(torch.cat(outputs, 2), torch.stack(whole))
    torch.testing.assert_close(torch.cat(masks, 1), others["mask_spk1"])
    assert state.frames == 45


def test_state_of_a_stream_is_bounded_and_float32_streams_stay_close() -> None:
    model = build(9, hidden_dim=32, decoder_s4=True, **CAUSAL).eval()
    x = features(1, 1600).float()
    state, outputs, sizes = None, [], set()
    with torch.no_grad():
        whole = torch.stack(run(model, x)[0])
        for chunk in x.split(80, 1):
            y, state, _ = model.forward_streaming(chunk, state)
            outputs.append(torch.stack(y))
            sizes.add(sum(value.numel() for value in state.kept.values()))
    assert len(sizes) == 1
    assert relative(torch.cat(outputs, 2), whole) < 1e-5


def test_causal_output_does_not_look_ahead() -> None:
    model = build(9, decoder_s4=True, **CAUSAL).double().eval()
    assert model.lookahead_frames == 0
    assert build(9).lookahead_frames is None
    x = features(1, 40)
    with torch.no_grad():
        reference = run(model, x)[0][0]
        for first_changed in (1, 8, 17, 39):
            changed = x.clone()
            changed[:, first_changed:] = features(1, 40 - first_changed)
            y = run(model, changed)[0][0]
            torch.testing.assert_close(y[:, :first_changed], reference[:, :first_changed])
            assert not torch.allclose(y[:, first_changed], reference[:, first_changed])


def test_streams_through_espnet(experiment) -> None:
    """ESPnet's streaming driver equals its offline one, for pieces of one frame and of several."""
    from espnet2.bin.enh_inference import SeparateSpeech
    from espnet2.bin.enh_inference_streaming import SeparateSpeechStreaming

    for chunk_size in (1, 7):
        filterbank = {"channel": 9, "kernel_size": 16, "stride": 8, "chunk_size": chunk_size}
        config = {
            "encoder": "conv_chunk",
            "encoder_conf": filterbank,
            "decoder": "conv_chunk",
            "decoder_conf": filterbank,
            "separator": "s4m",
            "separator_conf": {**TINY, **CAUSAL},
        }
        files = experiment(config)
        wave = torch.randn(1, 168)
        whole = SeparateSpeech(*files)(wave, fs=8000)
        stream = SeparateSpeechStreaming(*files)
        pieces = [stream(piece, fs=8000) for piece in stream.frame(wave)]
        for speaker, expected in enumerate(whole):
            merged = stream.merge([piece[speaker] for piece in pieces], torch.tensor([168]))
            assert relative(merged, torch.as_tensor(expected)) < 1e-5


def test_bfloat16_autocast_trains_with_finite_gradients() -> None:
    model = build(hidden_dim=32, decoder_s4=True)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    sources = torch.randn(2, 2, 400)
    losses = []
    for _ in range(200):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = run(model, sources.sum(1))[0]
        loss = sum((y - sources[:, n]).square().mean() for n, y in enumerate(outputs))
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("input_dim", "options", "words"),
    [
        (0, {}, "input_dim"),
        (1, {"num_spk": 0}, "num_spk"),
        (1, {"bottleneck_dim": 0}, "bottleneck_dim"),
        (1, {"hidden_dim": 0}, "hidden_dim"),
        (1, {"num_scales": 0}, "num_scales"),
        (1, {"num_repeats": 0}, "num_repeats"),
        (1, {"state_dim": 5}, "state_dim"),
        (1, {"mid": "x"}, "mid"),
        (1, {"kernel": "x"}, "kernel"),
        (1, {"window_ms": 0.1}, "window_ms"),
        (1, {"window_ms": 4.3}, "window_ms"),
        (9, {"causal": True}, "bidirectional"),
        (1, CAUSAL, "causal needs features"),
        (9, {**CAUSAL, "legacy_top_fusion": True}, "legacy_top_fusion"),
    ],
)
def test_bad_values_are_named(input_dim, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        build(input_dim, **options)


def test_bad_inputs_are_named() -> None:
    model = build().double()
    with pytest.raises(ValueError, match=r"input must be \(B, N\)"):
        run(model, features(1, 5))
    with pytest.raises(ValueError, match=r"ilens must lie in 1\.\.50"):
        run(model, waves(1, 50), [51])
    with pytest.raises(ValueError, match=r"input must be \(B, L, F\)"):
        run(build(9).double(), waves(1, 50))
    with pytest.raises(ValueError, match="causal"):
        build(9).double().forward_streaming(features(1, 3))
