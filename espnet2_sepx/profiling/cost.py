"""The cost of one configuration: measured in processes of their own, kept as ``cost.json``.

Schema 2 (figures per second are those of the stated input divided by its length):

===================== =====================================================================
``schema``            2
``rules``             version of the counting rules (``rules.RULES_VERSION``)
``config``            name of the configuration
``separator``         its name in ESPnet
``fs``, ``seconds``   sampling rate in Hz and length of the input
``input``             what was processed: ``noise``, or a recording's or data directory's path
``parameters``        ``total``, ``trainable``, ``by_part`` {part: number}
``macs_per_second``   ``weights`` (one factor derives from a parameter), ``all`` (every
                      multiply-accumulate of this input), ``executed`` (the same),
                      ``theoretical`` (if nothing had been skipped), ``elementwise`` (beside
                      them); ``ptflops``, ``thop``, ``torchprofile`` (what these would count,
                      see ``conventions``; null if they cannot) and ``problems`` {which: why};
                      ``by_part`` {part: {all columns but executed and theoretical}};
                      ``uncounted`` {operator without a rule: calls}
``conditional``       null if the work does not depend on the input or there was no
                      ``--data_dir``; else over its ``utterances`` and ``seconds``:
                      ``executed`` and ``theoretical`` MACs per second of an utterance
                      {``mean``, ``p5``, ``p50``, ``p95``}, and ``by_segment`` {``silence``,
                      ``one_speaker``, ``overlap``: {``seconds`` and the same four, executed
                      during a frame}}
``rtf``               ``median``, ``min``, ``max``, ``threads``, ``repeats``, ``warmup``
``memory_mb``         ``peak``, ``baseline`` (10^6 bytes)
``other_runs``        list of {``device``, ``threads``, ``rtf``, ``memory_mb``}
``curves``            list of {``device``, ``threads``, ``points`` [{``seconds``, ``rtf``,
                      ``memory_mb``}], ``stopped`` (why before the last length, or null),
                      ``slope`` {``time``, ``memory``: exponents of growth; ``from_s``,
                      ``to_s``}, null for fewer than two points}
``latency``           ``algorithmic_samples`` and ``algorithmic_ms``: look-ahead of the output;
                      null if the model sees the whole input
``streaming``         null if the model has no streaming methods; ``problem`` if they fail; else
                      ``chunk_samples``, ``chunk_ms``, ``ms_per_chunk`` {``median``, ``p95``,
                      ``max``}, ``rtf``, ``latency_samples`` and ``latency_ms`` (longest wait of
                      an output sample), ``difference_to_offline`` (relative, 0 is best)
``environment``       ``processor``, ``torch``, ``numpy``, ``python``, ``espnet``,
                      ``espnet2_sepx``, ``device``; on a GPU ``accelerator``, ``cuda``
===================== =====================================================================
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from espnet2_sepx.errors import UserError
from espnet2_sepx.profiling.tree import DEPTH

SCHEMA = 2
DEFAULT_SECONDS = 2.4
CONVENTIONS = ("ptflops", "thop", "torchprofile")
PARTS = ("memory", "rtf", "latency", "streaming", "macs", "conditional")

# Read by the thread pools of PyTorch, OpenBLAS and MKL when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        config: path of an ESPnet ``enh`` configuration.
        model_file: parameters; without, the model keeps its random ones.
        fs: sampling rate in Hz; None takes the one the configuration states.
        seconds: length of the input; None takes the whole recording (2.4 s of noise).
        wav: a recording to process instead of noise.
        data_dir: a data directory whose mixtures to process instead of noise.
        channels: of the noise.
        threads: CPU threads.
        repeats: timed runs.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        depth: names in a part's path (see ``tree``).
        parts: what to measure, of ``PARTS``.
        max_utterances: of ``data_dir``, for the cost over a set; None is all.
        repeat_input: repeat recordings that are too short rather than refuse.
        memory_limit_mb: fail, rather than use more (CPU).
        time_limit_s: stop the process after so long.
    """

    config: str
    model_file: str | None = None
    fs: int | None = None
    seconds: float | None = None
    wav: str | None = None
    data_dir: str | None = None
    channels: int = 1
    threads: int = 1
    repeats: int = 5
    device: str = "cpu"
    depth: int = DEPTH
    parts: tuple[str, ...] = PARTS
    max_utterances: int | None = None
    repeat_input: bool = False
    memory_limit_mb: float | None = None
    time_limit_s: float | None = None


def measure(request: Request) -> dict[str, Any]:
    """Measure in a child process (threads fixed from its start, memory its own).

    Returns:
        the entries of the schema that ``request.parts`` ask for.
    """
    with tempfile.TemporaryDirectory(prefix="measure_cost_") as folder:
        result = Path(folder) / "result.json"
        environment = {**os.environ, **{name: str(request.threads) for name in THREAD_VARIABLES}}
        command = [sys.executable, "-m", "espnet2_sepx.profiling.worker"]
        command += [json.dumps(asdict(request)), str(result)]
        try:
            child = subprocess.run(
                command, env=environment, check=False, timeout=request.time_limit_s
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"{request.config}: not done after {error.timeout:.0f} s; try a shorter --seconds"
            ) from error
        if child.returncode or not result.is_file():
            raise UserError(_why_it_failed(request, child.returncode))
        answer = json.loads(result.read_text(encoding="utf-8"))
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def _why_it_failed(request: Request, status: int) -> str:
    what = f"{request.config}: the measuring process"
    if status < 0:
        return f"{what} was killed by signal {-status} (out of memory?); try a shorter --seconds"
    return f"{what} failed with status {status}; its messages are above"


def config_name(path: str | Path) -> str:
    """A readable name: the file's, or its folder's if the file is just ``config.yaml``."""
    path = Path(path)
    return path.resolve().parent.name if path.stem == "config" else path.stem


def read_cost(path: str | Path) -> dict[str, Any]:
    """Read a ``cost.json``; ``UserError`` if it is not one of this schema."""
    try:
        cost = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); make it with --config") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); make it with --config") from error
    if not isinstance(cost, dict) or cost.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a cost.json of schema {SCHEMA}; make it again with --config")
    return cost
