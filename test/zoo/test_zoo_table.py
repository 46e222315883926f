"""The zoo's table keeps what others wrote."""

from __future__ import annotations

import pytest

from espnet2_sepx.errors import UserError
from espnet2_sepx.zoo.table import COLUMNS, read_table, with_row, write_table


def test_round_trip_and_unknown_columns(tmp_path):
    path = tmp_path / "table.csv"
    assert read_table(path) == []
    path.write_text("corpus,task,name,url,note\nwsj,asr,other,https://x/y.zip,keep me\n")
    write_table(path, with_row(read_table(path), {"name": "new", "url": "u, with comma"}))
    first, second = read_table(path)
    assert (first["name"], first["note"], first["sha256"]) == ("other", "keep me", "")
    assert second["url"] == "u, with comma"
    assert path.read_text().splitlines()[0] == ",".join([*COLUMNS, "note"])


def test_a_row_replaces_those_of_the_same_name():
    rows = [{"name": "a", "url": "1"}, {"name": "b", "url": "2"}, {"name": "a", "url": "3"}]
    assert with_row(rows, {"name": "a", "url": "4"}) == [rows[1], {"name": "a", "url": "4"}]


def test_our_columns_are_those_of_the_model_zoo():
    zoo = pytest.importorskip("espnet_model_zoo")
    from pathlib import Path

    header = (Path(zoo.__file__).parent / "table.csv").read_text().splitlines()[0].split(",")
    assert list(COLUMNS[: len(header)]) == header


def test_another_file_is_not_taken_for_a_table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected columns name and url"):
        read_table(path)
