"""Cost and latency of a model that separates a stream, frame by frame.

The loop is that of ESPnet's ``enh_inference_streaming``: the encoder cuts the input into frames,
each goes through ``forward_streaming`` of encoder, separator and decoder, and the decoded frames
are overlapped and added. A separator may hold frames back and return none, or several at once
(models that work in chunks); the sum over the stream counts.

Legend: N samples; a frame of ``frame`` samples enters every ``hop`` samples.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espnet2_sepx.profiling.model import separate

TOLERANCE = 1e-4
"""Change of an output, relative to its largest sample, that rounding cannot explain."""


@dataclass
class Stream:
    """One run over a whole signal."""

    step_of_frame: list[int]
    """At which step each output frame came."""
    seconds_of_step: list[float]
    """Computing time of each step."""
    outputs: Tensor
    """Merged waveforms (speakers, N')."""


@torch.no_grad()
def run_stream(model: Any, mixture: Tensor) -> Stream:
    """Separate ``(1, N)`` frame by frame."""
    frames: list[list[Tensor]] = [[] for _ in range(model.separator.num_spk)]
    step_of_frame: list[int] = []
    seconds_of_step = []
    state = None
    for step, chunk in enumerate(model.encoder.streaming_frame(mixture)):
        start = time.perf_counter()
        features = model.encoder.forward_streaming(chunk)
        outputs, state, _ = model.separator.forward_streaming(features, state)
        for speaker, output in zip(frames, outputs, strict=True):
            for index in range(output.shape[1]):
                speaker.append(model.decoder.forward_streaming(output[:, index : index + 1]))
        seconds_of_step.append(time.perf_counter() - start)
        step_of_frame += [step] * (len(frames[0]) - len(step_of_frame))
    if not step_of_frame:
        raise ValueError(f"no output after {mixture.shape[1]} samples")
    merged = [model.decoder.streaming_merge(speaker)[0] for speaker in frames]
    return Stream(step_of_frame, seconds_of_step, torch.stack(merged))


def measure_stream(model: Any, mixture: Tensor, fs: int) -> dict[str, Any]:
    """The ``streaming`` entry of ``cost.json``; ``{"problem": ...}`` if the model does not stream.

    Args:
        model: of ESPnet's enh task, in eval mode.
        mixture: ``(1, N)``, many frames long and without silence.
        fs: in Hz.
    """
    try:
        run_stream(model, mixture)  # warm-up
        stream = run_stream(model, mixture)
        latency = _latency(model, mixture, stream)
    except Exception as error:  # the model's own, for want of a promise to rely on
        reason = " ".join(str(error).split()) or type(error).__name__
        return {"problem": reason}
    hop, frame, _ = framing(model)
    whole = torch.cat(separate(model, mixture, fs))
    # The last frames may still have waited for others, so the end may lack their overlap.
    common = min(whole.shape[1], stream.outputs.shape[1] - (frame - hop))
    steps = sorted(1000 * seconds for seconds in stream.seconds_of_step)
    return {
        "chunk_samples": hop,
        "chunk_ms": 1000 * hop / fs,
        "ms_per_chunk": {
            "median": statistics.median(steps),
            "p95": steps[int(0.95 * (len(steps) - 1))],
            "max": steps[-1],
        },
        "rtf": sum(steps) / 1000 / (len(steps) * hop / fs),
        "latency_samples": latency,
        "latency_ms": 1000 * latency / fs,
        "difference_to_offline": _difference(whole[:, :common], stream.outputs[:, :common]),
    }


def framing(model: Any) -> tuple[int, int, int]:
    """Hop, frame and samples by which the first frame starts before the signal."""
    encoder = model.encoder
    if hasattr(encoder, "stft"):
        frame = int(encoder.win_length)
        return int(encoder.hop_length), frame, frame // 2 if encoder.center else 0
    return int(encoder.stride), int(encoder.kernel_size), 0


def _latency(model: Any, mixture: Tensor, stream: Stream) -> int:
    """Longest wait, in samples, of an output sample for the input it still needs.

    Sample n is complete when the last frame over it has come, at a step that has consumed a known
    part of the input. Among all n one that waits longest is taken, and an impulse there has to come
    out at the time computed; if it comes out earlier the model looks less far ahead than it waits.
    """
    hop, frame, start = framing(model)

    def consumed(sample: int) -> int:
        """Samples that have entered before output sample ``sample`` is complete."""
        last_frame = (sample + start) // hop
        return stream.step_of_frame[last_frame] * hop + frame - start

    complete = range(mixture.shape[1] // 4, (len(stream.step_of_frame) * hop) - start)
    longest = max(complete, key=lambda sample: consumed(sample) - sample)
    changed = mixture.clone()
    changed[:, longest] += 10 * mixture.abs().max()
    difference = (run_stream(model, changed).outputs - stream.outputs).abs().amax(0)
    affected = (difference[longest:] > TOLERANCE * stream.outputs.abs().max()).nonzero()
    if not len(affected):
        raise ValueError(f"an impulse at sample {longest} changes nothing from there on")
    return consumed(longest + int(affected[0])) - longest


def _difference(whole: Tensor, streamed: Tensor) -> float:
    """Largest difference relative to the largest sample."""
    return ((whole - streamed).abs().max() / whole.abs().max().clamp_min(1e-12)).item()


def streams(model: Any) -> bool:
    """Whether every part has a streaming method of its own, not that of ESPnet's base classes."""
    from espnet2.enh.decoder.abs_decoder import AbsDecoder
    from espnet2.enh.encoder.abs_encoder import AbsEncoder
    from espnet2.enh.separator.abs_separator import AbsSeparator

    parts = (
        (model.encoder, AbsEncoder),
        (model.separator, AbsSeparator),
        (model.decoder, AbsDecoder),
    )
    return all(type(part).forward_streaming is not base.forward_streaming for part, base in parts)
