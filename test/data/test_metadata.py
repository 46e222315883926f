import math

import pytest

from espnet2_sepx.data.metadata import (
    Mixture,
    Noise,
    Part,
    RecordedSource,
    SpokenSource,
    columns,
    read_table,
    write_table,
)
from espnet2_sepx.data.synth import Utterance
from espnet2_sepx.errors import UserError

SPOKEN = SpokenSource(
    "m3-001_000", "m3-001", 12, 4000, math.pi, Utterance("en+m3", 50, 170, 1, 0.97, 'Say "a, b".')
)
RECORDED = RecordedSource("ann_1", "ann", 0, 8000, 0.1 + 0.2, "train/ann/Größe 1.wav")
MIXTURE = Mixture(
    "a_b_00000",
    8000,
    7999,
    "0-1",
    1 / 3,
    Part("a_0", 5, 7999, 0, 1e-3 / 3, -28.25, "hall_1.wav"),
    Part("b_0", 0, 4000, 3999, math.e, -30.0, ""),
    Noise("rain.flac", 77, 0.5, 3.3),
)


@pytest.mark.parametrize("row", [SPOKEN, RECORDED, MIXTURE])
def test_reading_gives_back_the_very_same_row(tmp_path, row):
    path = tmp_path / "table.csv"
    write_table(path, [row, row])
    assert read_table(path, SpokenSource, RecordedSource, Mixture) == [row, row]


def test_nested_fields_become_prefixed_columns():
    names = columns(Mixture)
    assert names[:5] == ["utt", "fs", "samples", "seed", "overlap"]
    assert {"s1_source", "s2_gain", "s1_rir", "noise_snr_db"} <= set(names)
    assert len(names) == len(set(names))


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    write_table(path, [RECORDED])
    with pytest.raises(UserError, match="columns"):
        read_table(path, Mixture)
    path.write_text("")
    with pytest.raises(UserError, match="columns"):
        read_table(path, Mixture)


def test_a_missing_table_and_a_broken_line_are_named(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(UserError, match=r"table.csv: No such file"):
        read_table(path, RecordedSource)
    write_table(path, [RECORDED])
    path.write_text(path.read_text().replace("8000", "many"))
    with pytest.raises(UserError, match="line 2"):
        read_table(path, RecordedSource)
