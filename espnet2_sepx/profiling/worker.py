"""The measuring process: ``python -m espnet2_sepx.profiling.worker REQUEST_JSON RESULT_PATH``.

Memory first, as long as nothing else has run; then time; the count last, since counting slows a
run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from espnet2_sepx.errors import UserError
from espnet2_sepx.profiling import environment, memory, rtf
from espnet2_sepx.profiling.cost import DEFAULT_SECONDS, SCHEMA, Request, config_name
from espnet2_sepx.profiling.inputs import noise, recording, recordings
from espnet2_sepx.profiling.latency import algorithmic_latency
from espnet2_sepx.profiling.macs import Count, count_macs
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
from espnet2_sepx.profiling.tree import parameters_by_part, work_by_part


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
    with tqdm(total=5, desc="measuring cost", unit="step", file=sys.stderr) as steps:
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
        run = _explained(model, mixture.to(device), fs, name)
        steps.update()
        memory_mb = memory.peak_memory(run, device)
        steps.update()
        times = rtf.real_time_factor(run, seconds, request.repeats, device=device)
        steps.update()
        latency = _latency(model, request, fs, name)
        steps.update()
        # On a CPU whatever the device: kernels differ, the work does not.
        count = count_macs(model.cpu(), _explained(model, mixture, fs, name))
        steps.update()
    return {
        "schema": SCHEMA,
        "rules": RULES_VERSION,
        "config": config_name(request.config),
        "separator": config["separator"],
        "fs": fs,
        "seconds": seconds,
        "input": request.wav or request.data_dir or "noise",
        "parameters": _parameters(model, request.depth),
        "macs_per_second": per_second(count, seconds, request.depth),
        "rtf": times,
        "memory_mb": memory_mb,
        "latency": latency,
        "environment": {**environment.describe(device), "device": device},
    }


def _input(request: Request, fs: int) -> Tensor:
    """(1, samples[, channels]) from where the request says."""
    samples = None if request.seconds is None else round(request.seconds * fs)
    if request.wav is not None:
        return recording(request.wav, fs, samples)
    samples = samples or round(DEFAULT_SECONDS * fs)
    if request.data_dir is not None:
        return recordings(request.data_dir, fs, samples)
    return noise(samples, request.channels)


def _latency(model: nn.Module, request: Request, fs: int, name: str) -> dict[str, float | None]:
    """The ``latency`` entry of the schema, from noise of a second or a few frames."""
    mixture = noise(max(fs, 16 * frame_samples(model, fs)), request.channels)
    samples = algorithmic_latency(
        lambda x: _explained(model, x, fs, name)(), mixture.to(request.device)
    )
    return {
        "algorithmic_samples": samples,
        "algorithmic_ms": None if samples is None else 1000 * samples / fs,
    }


def per_second(count: Count, seconds: float, depth: int) -> dict[str, Any]:
    """The ``macs_per_second`` entry of the schema."""
    total = count.total
    return {
        "weights": total.weights / seconds,
        "all": total.all / seconds,
        "executed": total.all / seconds,
        "elementwise": total.elementwise / seconds,
        "by_part": {
            part: {
                "weights": work.weights / seconds,
                "all": work.all / seconds,
                "elementwise": work.elementwise / seconds,
            }
            for part, work in work_by_part(count.by_module(), depth).items()
        },
        "uncounted": dict(count.uncounted),
    }


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


def _explained(model: nn.Module, mixture: Tensor, fs: int, name: str) -> Callable[[], Any]:
    """Run the model; a failure names the input that it could not process."""

    def run() -> list[Tensor]:
        try:
            return separate(model, mixture, fs)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{name}: the model cannot process {tuple(mixture.shape)} samples at {fs} Hz "
                f"({reason}); check --fs, --seconds and --channels"
            ) from error

    return run


if __name__ == "__main__":
    main()
