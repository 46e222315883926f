"""Curves over length: when they stop, and the growth they report."""

import pytest

from espnet2_sepx.errors import UserError
from espnet2_sepx.profiling.curve import Limits, in_words, measure_curve, slopes

LENGTHS = [1.0, 2.0, 4.0, 8.0, 16.0]
NO_LIMITS = Limits(run_s=1e9, memory_mb=1e9)


def system(time, memory, baseline=100.0):
    """A point of a system with given computing time and memory of a run."""

    def measure(seconds):
        return {
            "rtf": {"median": time(seconds) / seconds},
            "memory_mb": {"baseline": baseline, "peak": baseline + memory(seconds)},
        }

    return measure


@pytest.mark.parametrize(
    ("power", "word"),
    [(1, "linear"), (1.5, "between linear and quadratic"), (2, "quadratic or more")],
)
def test_the_exponent_of_a_power_law_is_found(power, word):
    curve = measure_curve(system(lambda s: 0.1 * s**power, lambda s: 3 * s), LENGTHS, NO_LIMITS)
    assert len(curve["points"]) == 5
    assert curve["stopped"] is None
    assert curve["slope"]["time"] == pytest.approx(power)
    assert curve["slope"]["memory"] == pytest.approx(1)
    assert in_words(curve["slope"]["time"]) == word


def test_short_lengths_with_their_constants_do_not_count():
    curve = measure_curve(system(lambda s: 10 + s, lambda s: s), [0.01, 512, 1024], NO_LIMITS)
    assert curve["slope"]["from_s"] == 512
    assert curve["slope"]["time"] == pytest.approx(1, abs=0.02)


def test_stops_before_a_run_that_would_take_too_long():
    tried = []

    def measure(seconds):
        tried.append(seconds)
        return system(lambda s: s**2, lambda s: s)(seconds)

    curve = measure_curve(measure, LENGTHS, Limits(run_s=100.0, memory_mb=1e9))
    assert tried == [1.0, 2.0, 4.0, 8.0]
    assert curve["stopped"] == "16 s: a run would need about 256 s, the limit is 100 s"


def test_stops_before_memory_ends_and_does_not_extrapolate_the_baseline():
    limits = Limits(run_s=1e9, memory_mb=1000.0)
    curve = measure_curve(system(lambda s: s, lambda s: 100 * s, 900.0), [0.5, 1, 2], limits)
    assert [point["seconds"] for point in curve["points"]] == [0.5, 1]
    assert curve["stopped"] == "2 s: memory would need about 1100 MB, the limit is 1000 MB"


def test_a_point_that_fails_ends_the_curve_with_its_reason():
    def measure(seconds):
        if seconds > 1:
            raise UserError("the measuring process was killed")
        return system(lambda s: s, lambda s: s)(seconds)

    curve = measure_curve(measure, LENGTHS, NO_LIMITS)
    assert curve["stopped"] == "2 s: the measuring process was killed"
    assert curve["slope"] is None
    assert slopes([]) is None
