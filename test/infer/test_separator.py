"""The whole path in memory: identity, equality with ESPnet, levels, channels, options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sepx_models import RATE, SKIM, TF_MOE, Oracle, make_experiment, speech_like

import espnet2_sepx
from espnet2_sepx.errors import UserError


def noise(samples: int, seed: int = 0, channels: int | None = None) -> np.ndarray:
    shape = samples if channels is None else (samples, channels)
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(50))
def test_an_identity_and_an_oracle_give_their_input_back(seed):
    rng = np.random.default_rng(seed)
    model_fs, fs = (int(rng.choice([8000, 16000])) for _ in range(2))
    if seed % 3 == 0:
        fs = int(rng.choice([11025, 22050, 44100, 48000]))
    samples = int(rng.choice([1, 2, 77, 4000, int(rng.integers(5000, 60000))]))
    chunk = int(rng.integers(500, 9000))
    overlap = int(rng.integers(0, chunk))
    mixture = np.stack(
        [speech_like(samples, fs, rng, 0.35 * min(fs, model_fs)) for _ in range(2)], 1
    )
    identity = Oracle(model_fs, chunk, overlap)
    expected = np.broadcast_to(mixture.mean(1), (2, samples))
    short = samples < 200 and fs != model_fs  # not even band-limited
    tolerance = 0.2 if short else 1e-4 if fs != model_fs else 1e-6
    np.testing.assert_allclose(identity(mixture, fs), expected, atol=tolerance)
    oracle = Oracle(model_fs, chunk, overlap, num_spk=2)
    np.testing.assert_allclose(oracle(mixture, fs), mixture.T, atol=tolerance)


def test_it_does_not_matter_in_which_pieces_a_recording_comes():
    mixture = speech_like(50000, 16000, np.random.default_rng(0), 3000)[:, None]
    identity = Oracle(8000, 3000, 500)
    session, parts = identity.start(16000, 1), []
    for part in np.split(mixture, [1, 2, 5000, 5001, 40000]):
        parts.append(session.push(part))
    parts.append(session.flush())
    np.testing.assert_allclose(np.concatenate(parts, 2)[:, 0], identity(mixture, 16000), atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"model_conf": {"normalize_variance": True}}])
def test_equals_stock_espnet_inference(tmp_path, espnet_task, changes):
    from espnet2.bin.enh_inference import SeparateSpeech

    config = espnet_task.get_default_config() | TF_MOE | changes
    exp = make_experiment(tmp_path, config)
    mixture = noise(4 * RATE)
    stock = SeparateSpeech(exp / "config.yaml", exp / "valid.si_snr_loss.best.pth")
    expected = np.concatenate(stock(mixture[None], fs=RATE))
    streams = espnet2_sepx.separate(mixture, str(exp), fs=RATE)
    assert np.abs(streams - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("samples", [1, 80, 129, 255, 256, 8000])
def test_any_length_of_any_model_comes_out_as_it_went_in(tf_moe_exp, causal_exp, rnn_exp, samples):
    for exp in (tf_moe_exp, causal_exp, rnn_exp):
        streams = espnet2_sepx.separate(noise(samples), str(exp), fs=RATE)
        assert streams.shape == (2, samples)
        assert np.isfinite(streams).all()


@pytest.mark.parametrize("level", [1e-4, 300.0])
def test_levels_scale_through(tf_moe_exp, level):
    separator = espnet2_sepx.load_separator(str(tf_moe_exp), chunk_s=0.5, overlap_s=0.1)
    reference = separator(noise(RATE), RATE)
    np.testing.assert_allclose(
        separator(level * noise(RATE), RATE),
        level * reference,
        rtol=1e-2,
        atol=1e-3 * level * np.abs(reference).max(),
    )


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0])
def test_silence_and_direct_current_stay_finite(tmp_path, constant):
    exp = make_experiment(tmp_path, TF_MOE, model_conf={"normalize_variance": True})
    streams = espnet2_sepx.separate(np.full(3000, constant, np.float32), str(exp), fs=RATE)
    assert np.isfinite(streams).all()
    if constant == 0:
        assert not streams.any()


def test_consistent_streams_add_up_to_the_mixture(tf_moe_exp, causal_exp):
    mixture = noise(3 * RATE + 17)
    for exp in (tf_moe_exp, causal_exp):
        streams = espnet2_sepx.separate(
            mixture, str(exp), fs=RATE, chunk_s=1.0, mixture_consistency=True
        )
        np.testing.assert_allclose(streams.sum(0), mixture, atol=1e-6)


def test_segments_get_the_energy_of_the_mixture(tf_moe_exp):
    mixture = noise(RATE)
    streams = espnet2_sepx.separate(mixture, str(tf_moe_exp), fs=RATE, normalize_segment_scale=True)
    assert np.linalg.norm(streams.sum(0)) == pytest.approx(np.linalg.norm(mixture), rel=1e-3)


def test_channels(tf_moe_exp):
    mixture = noise(RATE, channels=3)

    def separate(channels, x=mixture):
        return espnet2_sepx.separate(x, str(tf_moe_exp), fs=RATE, channels=channels, chunk_s=0.4)

    np.testing.assert_allclose(separate("mix"), separate("mix", mixture.mean(1)), atol=1e-6)
    np.testing.assert_array_equal(separate("first"), separate("first", mixture[:, 0]))
    each = separate("each")
    assert each.shape == (2, RATE, 3)
    alike = separate("each", np.repeat(mixture[:, :1], 3, 1))
    np.testing.assert_allclose(alike[:, :, 1], alike[:, :, 0], atol=1e-6)


def test_bfloat16_is_checked(tf_moe_exp, monkeypatch):
    streams = espnet2_sepx.separate(noise(RATE), str(tf_moe_exp), fs=RATE, dtype="bf16")
    exact = espnet2_sepx.separate(noise(RATE), str(tf_moe_exp), fs=RATE)
    assert 0 < np.linalg.norm(streams - exact) < 0.1 * np.linalg.norm(exact)
    monkeypatch.setattr("espnet2_sepx.infer.separator._BF16_DB", 200.0)
    with pytest.raises(UserError, match=r"--dtype bf16: changes .* use --dtype float32"):
        espnet2_sepx.separate(noise(RATE), str(tf_moe_exp), fs=RATE, dtype="bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.3}, "--budget: tf_moe has no such knob"),
        ({"chunk_s": 1.0, "overlap_s": 1.0}, r"--overlap_s 1: must lie in \[0, chunk_s = 1\)"),
        ({"device": "cuda:7"}, "--device cuda:7: cannot be used"),
    ],
)
def test_what_a_model_does_not_have_is_told(tf_moe_exp, options, message):
    with pytest.raises(UserError, match=message):
        espnet2_sepx.load_separator(str(tf_moe_exp), **options)


def test_another_rate_than_the_configuration_states_is_told(tf_moe_exp, caplog):
    espnet2_sepx.load_separator(str(tf_moe_exp), fs=RATE)
    assert not caplog.messages
    espnet2_sepx.load_separator(str(tf_moe_exp), fs=16000)
    assert "--fs 16000: " in caplog.text
    assert "is for 8000 Hz" in caplog.text


def test_a_budget_reaches_the_separator(tf_moe_exp, monkeypatch):
    from espnet2_sepx.separators.tf_moe import TFMoESeparator

    monkeypatch.setattr(TFMoESeparator, "external_utilization", None, raising=False)
    separator = espnet2_sepx.load_separator(str(tf_moe_exp), budget=0.3)
    assert separator.model.separator.external_utilization == 0.3
    with pytest.raises(UserError, match=r"--budget 2: must lie in \(0, 1\]"):
        espnet2_sepx.load_separator(str(tf_moe_exp), budget=2)


@pytest.mark.parametrize("channels", ["mix", "each"])  # as a stream, in chunks
def test_an_output_that_is_not_finite_is_told(tmp_path, channels):
    exp = make_experiment(tmp_path, SKIM)
    path = exp / "valid.si_snr_loss.best.pth"
    state = torch.load(path, weights_only=True)
    torch.save(
        {
            key: value * np.nan if value.is_floating_point() else value
            for key, value in state.items()
        },
        path,
    )
    with pytest.raises(UserError, match="the model's output is not finite"):
        espnet2_sepx.separate(noise(400), str(exp), fs=RATE, channels=channels)


def test_arguments_of_the_functions_are_checked(tf_moe_exp):
    with pytest.raises(ValueError, match="fs must be given"):
        espnet2_sepx.separate(noise(100), str(tf_moe_exp))
    with pytest.raises(ValueError, match="mixture must be finite"):
        espnet2_sepx.separate(np.full(100, np.nan), str(tf_moe_exp), fs=RATE)
    with pytest.raises(ValueError, match=r"mixture must be \(N,\)"):
        espnet2_sepx.separate(np.zeros((2, 3, 4)), str(tf_moe_exp), fs=RATE)
    with pytest.raises(AttributeError, match="no attribute 'seperate'"):
        _ = espnet2_sepx.seperate
