"""The measuring process: ``python -m espnet2_sepx.profiling.worker REQUEST_JSON RESULT_PATH``.

Memory first, as long as nothing else has run; then time; the count last, since counting slows a
run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from espnet2_sepx.errors import UserError
from espnet2_sepx.profiling import environment, memory, rtf
from espnet2_sepx.profiling.conditional import (
    conditional_separator,
    measure_set,
    summarise,
    theoretical_macs,
)
from espnet2_sepx.profiling.conventions import figures
from espnet2_sepx.profiling.cost import DEFAULT_SECONDS, SCHEMA, Request, config_name
from espnet2_sepx.profiling.curve import limit_memory
from espnet2_sepx.profiling.inputs import noise, recording, recordings, repeated
from espnet2_sepx.profiling.latency import algorithmic_latency
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import (
    build_model,
    check_length,
    frame_samples,
    load_config,
    load_parameters,
    sample_rate,
    separate,
)
from espnet2_sepx.profiling.rules import RULES_VERSION
from espnet2_sepx.profiling.streaming import measure_stream, streams
from espnet2_sepx.profiling.tree import by_part, parameters_by_part

WORK = ("weights", "all", "elementwise")
Separation = Callable[[Tensor], list[Tensor]]


def main() -> None:
    request = Request(**json.loads(sys.argv[1]))
    try:
        answer = measure_here(request)
    except UserError as error:
        answer = {"error": str(error)}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


def measure_here(request: Request) -> dict[str, Any]:
    """Do the whole measurement in this process."""
    rtf.use_threads(request.threads)
    config = load_config(request.config)
    name = Path(request.config).name
    fs = sample_rate(config, request.fs, name)
    mixture = _input(request, fs)
    seconds = mixture.shape[1] / fs
    device = _device(request.device)
    model = build_model(config, name).to(device)
    if request.model_file is not None:
        load_parameters(model, request.model_file)
    check_length(model, mixture.shape[1], fs)
    if request.memory_limit_mb is not None and device == "cpu":
        limit_memory(request.memory_limit_mb)
    run = partial(_separate, model, fs, name)
    answer = {
        "schema": SCHEMA,
        "rules": RULES_VERSION,
        "config": config_name(request.config),
        "separator": config["separator"],
        "fs": fs,
        "seconds": seconds,
        "input": request.wav or request.data_dir or "noise",
        "parameters": _parameters(model, request.depth),
        "environment": {**environment.describe(device), "device": device},
    }
    measured = partial(run, mixture.to(device))
    parts: dict[str, tuple[str, Callable[[], Any]]] = {
        "memory": ("memory_mb", lambda: memory.peak_memory(measured, device)),
        "rtf": ("rtf", lambda: _times(measured, seconds, request)),
        "latency": ("latency", lambda: _latency(model, run, request, fs)),
        "streaming": ("streaming", lambda: _streaming(model, request, fs)),
        # On a CPU whatever the device: kernels differ, the work does not.
        "macs": ("macs_per_second", lambda: _macs(model.cpu(), run, mixture, seconds, request)),
        "conditional": ("conditional", lambda: _conditional(model.cpu(), run, request, fs)),
    }
    # Alone for memory and time, then in the order of the table; counting slows a run.
    asked = [part for part in parts if part in request.parts]
    quiet = len(asked) < 3
    for part in tqdm(asked, desc="measuring cost", unit="part", file=sys.stderr, disable=quiet):
        key, measurement = parts[part]
        answer[key] = measurement()
    return answer


def _input(request: Request, fs: int) -> Tensor:
    """(1, samples[, channels]) from where the request says."""
    samples = None if request.seconds is None else round(request.seconds * fs)
    if request.wav is not None:
        if request.repeat_input and samples is not None:
            return repeated(recording(request.wav, fs), samples)
        return recording(request.wav, fs, samples)
    if samples is None:
        samples = round(DEFAULT_SECONDS * fs)
    if request.data_dir is not None:
        return recordings(request.data_dir, fs, samples, repeat=request.repeat_input)
    return noise(samples, request.channels)


def _times(run: Callable[[], Any], seconds: float, request: Request) -> dict[str, float | int]:
    warmup = 0 if request.memory_limit_mb is not None else 1  # of a curve: the run for memory
    return rtf.real_time_factor(run, seconds, request.repeats, warmup, request.device)


def _latency(
    model: nn.Module, run: Separation, request: Request, fs: int
) -> dict[str, float | None]:
    """The ``latency`` entry of the schema, from noise of a second or a few frames."""
    mixture = noise(max(fs, 16 * frame_samples(model, fs)), request.channels)
    samples = algorithmic_latency(run, mixture.to(request.device))
    return {
        "algorithmic_samples": samples,
        "algorithmic_ms": None if samples is None else 1000 * samples / fs,
    }


def _streaming(model: nn.Module, request: Request, fs: int) -> dict[str, Any] | None:
    if not streams(model) or request.channels > 1 or request.device != "cpu":
        return None
    return measure_stream(model, noise(max(fs, 64 * frame_samples(model, fs))), fs)


def _macs(
    model: nn.Module, run: Separation, mixture: Tensor, seconds: float, request: Request
) -> dict[str, Any]:
    """The ``macs_per_second`` entry of the schema."""
    separator = conditional_separator(model)
    if separator is not None:
        separator.record_cost = True
    count = count_macs(model, partial(run, mixture))
    if separator is not None:
        separator.record_cost = False
    executed = count.total.all
    by_module = count.by_module()
    owned = {path: work.weights for path, work in by_module.items()}
    found = figures(model, run, mixture, owned)
    columns = {
        **{name: {path: getattr(work, name) for path, work in by_module.items()} for name in WORK},
        **{name: figure.by_module for name, figure in found.items()},
    }
    parts = {name: by_part(values, request.depth) for name, values in columns.items()}
    order = dict.fromkeys(part for values in parts.values() for part in values)
    return {
        **{name: sum(columns[name].values()) / seconds for name in WORK},
        "executed": executed / seconds,
        "theoretical": theoretical_macs(executed, separator) / seconds,
        **{
            name: None if figure.total is None else figure.total / seconds
            for name, figure in found.items()
        },
        "problems": {name: f.problem for name, f in found.items() if f.problem is not None},
        "by_part": {
            part: {name: parts[name].get(part, 0) / seconds for name in columns} for part in order
        },
        "uncounted": dict(count.uncounted),
    }


def _conditional(
    model: nn.Module, run: Separation, request: Request, fs: int
) -> dict[str, Any] | None:
    if request.data_dir is None or conditional_separator(model) is None:
        return None
    return summarise(measure_set(model, run, request.data_dir, fs, request.max_utterances))


def _parameters(model: nn.Module, depth: int) -> dict[str, Any]:
    parameters = list(model.parameters())
    return {
        "total": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "by_part": parameters_by_part(model, depth),
    }


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name}: not usable here ({reason}); use --device cpu") from error
    return name


def _separate(model: nn.Module, fs: int, name: str, mixture: Tensor) -> list[Tensor]:
    """Run the model; a failure names the input that it could not process."""
    try:
        return separate(model, mixture, fs)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name}: the model cannot process {tuple(mixture.shape)} samples at {fs} Hz "
            f"({reason}); check --fs, --seconds and --channels"
        ) from error


if __name__ == "__main__":
    main()
