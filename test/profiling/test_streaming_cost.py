"""Streams of models whose latency is known."""

from types import SimpleNamespace

import pytest
import torch
from espnet2.enh.decoder.conv_decoder import ConvDecoder
from espnet2.enh.encoder.conv_encoder import ConvEncoder
from profiling_configs import conv_config, small_tcn, small_tf_moe
from torch import nn

from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.model import build_model
from espnet2_sepx.profiling.streaming import measure_stream, run_stream, streams

FS = 8000


class Chunked(nn.Module):
    """Returns what came in, in chunks of ``size`` frames, scaled by a look at the whole chunk."""

    num_spk = 2

    def __init__(self, size):
        super().__init__()
        self.size = size

    def chunk(self, frames):
        return frames * (1 + frames.mean(1, keepdim=True))

    def forward(self, x, lengths, additional=None):
        chunks = [self.chunk(part) for part in x.split(self.size, 1)]
        return [torch.cat(chunks, 1)] * 2, lengths, {}

    def forward_streaming(self, frame, state=None):
        waiting = [*(state or []), frame]
        if len(waiting) < self.size:
            return [frame[:, :0]] * 2, waiting, {}
        return [self.chunk(torch.cat(waiting, 1))] * 2, [], {}


def model_around(separator, kernel=16, stride=8):
    return SimpleNamespace(
        encoder=ConvEncoder(16, kernel, stride),
        separator=separator,
        decoder=ConvDecoder(16, kernel, stride),
    )


@pytest.mark.parametrize("size", [1, 5, 30])
def test_a_chunk_is_waited_for(size):
    """(size - 1) hops of 8, then the frame of 16."""
    found = measure_stream(model_around(Chunked(size)), noise(8 * 121), FS)
    assert found["latency_samples"] == (size - 1) * 8 + 16
    assert found["latency_ms"] == found["latency_samples"] / 8
    assert found["chunk_samples"] == 8
    assert found["difference_to_offline"] < 1e-5
    steps = found["ms_per_chunk"]
    assert 0 < steps["median"] <= steps["p95"] <= steps["max"]


def test_frames_come_out_at_the_step_that_completes_their_chunk():
    stream = run_stream(model_around(Chunked(4)), noise(8 * 13))
    assert stream.step_of_frame == [3] * 4 + [7] * 4 + [11] * 4


def test_a_separator_without_output_is_a_problem():
    assert "no output" in measure_stream(model_around(Chunked(10**6)), noise(800), FS)["problem"]


def test_which_models_stream():
    causal = conv_config("skim", unit=8, layer=2, segment_size=20, causal=True)
    model = build_model(causal)
    assert streams(model)
    assert measure_stream(model, noise(2000), FS)["latency_samples"] == 16
    assert not streams(build_model(small_tf_moe()))
    acausal = build_model(small_tcn())  # ESPnet's method takes it, and gives something else
    assert measure_stream(acausal, noise(2000), FS)["difference_to_offline"] > 0.1
