"""Time and memory of things with known time and memory."""

import sys
import time

import numpy as np
import pytest

from espnet2_sepx.profiling.memory import peak_memory
from espnet2_sepx.profiling.rtf import real_time_factor


def test_real_time_factor_is_time_over_length():
    calls = []

    def run():
        calls.append(time.sleep(0.02 if len(calls) < 3 else 0.06))

    found = real_time_factor(run, seconds=0.1, repeats=3, warmup=1)
    assert len(calls) == 4
    assert 0.2 <= found["min"] <= found["median"] <= found["max"]
    assert found["max"] >= 0.6 > found["min"]
    assert (found["repeats"], found["warmup"]) == (3, 1)


def test_no_repeats_is_an_error():
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        real_time_factor(lambda: None, 1.0, repeats=0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_sees_what_was_freed_again():
    found = peak_memory(lambda: np.ones(100_000_000, dtype=np.uint8).sum())
    assert 95 <= found["peak"] - found["baseline"] <= 130
