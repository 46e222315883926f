"""Memory does not grow with the length of a recording."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from sepx_models import RATE, RE_SEPFORMER, S4M, SPMAMBA, TF_MOE, make_experiment

PEAK = (  # not ru_maxrss, which a process inherits from the one that started it
    "import re, sys; from espnet2_sepx.bin.separate import main; assert main(sys.argv[1:]) == 0; "
    "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
)
MINUTES = int(os.environ.get("MEMORY_MINUTES", "10"))  # 60 takes minutes
LIMIT_MB = max(64 * MINUTES / 60, 48)
"""Equal runs differ by up to 25 MB; ten minutes of input and outputs held in memory are 58 MB."""
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


def peak_mb(exp, path, out) -> float:
    """Peak resident memory of a process that separates one file."""
    command = [sys.executable, "-c", PEAK, path, "--model", exp, "--output", out, "--threads", 1]
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_long_recording_takes_hardly_more_than_a_minute(tmp_path, name):
    exp = make_experiment(tmp_path / "exp", CONFIGS[name])
    minute = 0.1 * np.random.default_rng(0).standard_normal(60 * RATE)
    peaks = []
    for minutes in (1, MINUTES):
        path = tmp_path / f"{minutes}.wav"
        soundfile.write(path, np.tile(minute, minutes), RATE)
        peaks.append(peak_mb(exp, path, tmp_path / "out"))
        assert soundfile.info(tmp_path / f"out/{minutes}_spk2.wav").frames == minutes * 60 * RATE
    print(f"{name}: {peaks[0]:.0f} MB for a minute, {peaks[1]:.0f} MB for {MINUTES}")
    assert peaks[1] - peaks[0] < LIMIT_MB
