"""Memory does not grow with the length of a recording."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from sepx_models import RATE, RE_SEPFORMER, S4M, SPMAMBA, TF_MOE, make_experiment

PEAKS = """
import sys
from espnet2_sepx.bin.separate import main
from espnet2_sepx.profiling.memory import peak_memory

*options, minute, long = sys.argv[1:]
for path in (minute, minute, long):
    print("peak", peak_memory(lambda: main([path, *options, "--overwrite", "true"]))["peak"])
"""  # in one process: how much of its libraries a process has in memory differs by 25 MB
MINUTES = int(os.environ.get("MEMORY_MINUTES", "10"))  # 60 takes minutes
LIMIT_MB = max(64 * MINUTES / 60, 16)  # so much differs from run to run
CONFIGS = {
    "tf_moe": TF_MOE,
    "re_sepformer": {  # fewer chunks than in the other tests
        name: {**conf, "chunk_size": 200}
        if name.endswith("conf") and "chunk_size" in conf
        else conf
        for name, conf in RE_SEPFORMER.items()
    },
    "s4m": S4M,
    "spmamba": SPMAMBA,
}


def peaks_mb(exp, out, *paths) -> list[float]:
    """Peak resident memory of a process that separates one file after the other."""
    command = [sys.executable, "-c", PEAKS, "--model", exp, "--output", out, "--threads", 1, *paths]
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True, check=True)
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak")]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_long_recording_takes_hardly_more_than_a_minute(tmp_path, name):
    exp = make_experiment(tmp_path / "exp", CONFIGS[name])
    minute = 0.1 * np.random.default_rng(0).standard_normal(60 * RATE)
    paths = [tmp_path / f"{minutes}.wav" for minutes in (1, MINUTES)]
    for minutes, path in zip((1, MINUTES), paths, strict=True):
        soundfile.write(path, np.tile(minute, minutes), RATE)
    *short, long = peaks_mb(exp, tmp_path / "out", *paths)
    assert soundfile.info(tmp_path / f"out/{MINUTES}_spk2.wav").frames == MINUTES * 60 * RATE
    print(f"{name}: {max(short):.0f} MB for a minute, {long:.0f} MB for {MINUTES}")
    assert long - max(short) < LIMIT_MB
