"""Streams equal whole files, at the latency that is stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sepx_models import (
    CAUSAL_RNN,
    RATE,
    RE_SEPFORMER,
    RE_SEPFORMER_STRICT,
    SKIM,
    TF_MOE,
    make_experiment,
)

import espnet2_sepx
from espnet2_sepx.errors import UserError
from espnet2_sepx.infer.causal import CausalEngine
from espnet2_sepx.infer.forward import frame_samples, separate

EXPERIMENTS = {
    "skim": SKIM,
    "rnn": CAUSAL_RNN,
    "re_sepformer": RE_SEPFORMER,
    "re_sepformer_strict": RE_SEPFORMER_STRICT,
}


@pytest.fixture(scope="module", params=EXPERIMENTS)
def separator(request, tmp_path_factory):
    exp = make_experiment(tmp_path_factory.mktemp(request.param), EXPERIMENTS[request.param])
    return espnet2_sepx.load_separator(str(exp))


def noise(samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(samples).standard_normal(samples).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 15, 16, 130, 255, 256, 300, 5003])
def test_a_stream_in_pieces_equals_the_whole(separator, samples):
    assert separator.streams
    mixture = noise(samples)
    least = frame_samples(separator.model, RATE)
    padded = np.pad(mixture, (0, max(least - samples, 0)))
    expected = torch.cat(separate(separator.model, torch.from_numpy(padded)[None], RATE)).numpy()
    rng = np.random.default_rng(0)
    engine, parts, start = CausalEngine(separator.model), [], 0
    while start < samples:
        size = int(rng.integers(1, 500))
        parts.append(engine.push(mixture[start : start + size, None]))
        start += size
    parts.append(engine.flush())
    streamed = np.concatenate(parts, 2)[:, 0]
    assert streamed.shape == (2, samples)
    np.testing.assert_allclose(streamed, expected[:, :samples], atol=1e-6)


def test_every_sample_comes_at_the_stated_latency_and_some_no_sooner(separator):
    engine = CausalEngine(separator.model)
    mixture = noise(1500)
    waits, out = [], 0
    for come, sample in enumerate(mixture, start=1):
        out += engine.push(sample.reshape(1, 1)).shape[2]
        waits.append(come - out)  # sample number `out` is the first still missing
    assert max(waits) < engine.latency
    assert max(waits[500:]) == engine.latency - 1


def test_nothing_gives_nothing(separator):
    assert CausalEngine(separator.model).flush().shape == (2, 1, 0)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TF_MOE, "sees the whole recording"),
        (
            {**SKIM, "separator_conf": {**SKIM["separator_conf"], "causal": False}},
            "streaming fails",
        ),
        (
            {**CAUSAL_RNN, "separator_conf": {**CAUSAL_RNN["separator_conf"], "rnn_type": "blstm"}},
            "streaming fails|changes with what comes later",
        ),
        ({**SKIM, "model_conf": {"normalize_variance": True}}, "needs the level of the whole"),
    ],
)
def test_a_model_that_is_not_causal_is_refused_with_the_reason(tmp_path, config, reason):
    separator = espnet2_sepx.load_separator(str(make_experiment(tmp_path, config)))
    assert not separator.streams
    with pytest.raises(UserError, match=f"cannot separate as it listens: .*({reason})"):
        separator.start(RATE, 1, live=True)
    assert separator(noise(3000), RATE).shape == (2, 3000)  # in chunks it works


def test_channels_one_by_one_need_whole_chunks(skim_exp):
    separator = espnet2_sepx.load_separator(str(skim_exp), channels="each")
    assert separator(np.stack([noise(3000)] * 2, 1), RATE).shape == (2, 3000, 2)
    with pytest.raises(UserError, match="need whole chunks"):
        separator.start(RATE, 2, live=True)
