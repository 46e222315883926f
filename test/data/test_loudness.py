import math

import numpy as np
import pytest

from espnet2_sepx.data.loudness import active_level_db, db_to_gain, gain_to_db, power_db

FS = 8000
SINE = np.sin(2 * np.pi * 440 * np.arange(2 * FS) / FS)


def test_a_full_scale_sine_has_minus_3_db():
    assert power_db(SINE) == pytest.approx(-3.01, abs=0.01)
    assert active_level_db(SINE, FS) == pytest.approx(-3.01, abs=0.01)


@pytest.mark.parametrize("gain_db", [-30.0, 6.0])
def test_a_gain_shifts_the_level_by_its_decibels(gain_db):
    louder = active_level_db(SINE * db_to_gain(gain_db), FS)
    assert louder - active_level_db(SINE, FS) == pytest.approx(gain_db)
    assert gain_to_db(db_to_gain(gain_db)) == pytest.approx(gain_db)


def test_silence_around_speech_leaves_its_level():
    padded = np.concatenate([np.zeros(5 * FS), SINE, np.zeros(3 * FS)])
    assert active_level_db(padded, FS) == pytest.approx(active_level_db(SINE, FS), abs=0.1)
    assert power_db(padded) < power_db(SINE) - 6


def test_silence_has_no_level():
    assert active_level_db(np.zeros(FS), FS) == -math.inf
    assert power_db(np.zeros(0)) == -math.inf


def test_levels_of_recordings_agree_with_the_speech_level_meter(shared_data):
    """The manifest's levels follow ITU-T P.56."""
    import csv

    import soundfile

    with open(shared_data / "manifest_speech.tsv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))[::50]
    errors = []
    for row in rows:
        signal, fs = soundfile.read(shared_data / row["path"])
        errors.append(active_level_db(signal, fs) - float(row["active_level_dbfs"]))
    assert abs(np.median(errors)) < 0.5
    assert np.abs(errors).max() < 2
