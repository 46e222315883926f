"""The table of a self-hosted model zoo, in the format of ``espnet_model_zoo``.

A zoo is a folder that any static web server can serve:

    table.csv                      one row per model; `name` is the key, `url` leads to the archive
    <name>/<name>.<digest>.zip     the packed model; a new version gets a new address, because
    <name>/<name>.<digest>.zip.sha256      clients cache by address (checksum for `sha256sum -c`)
    <name>/README.md               model card

``ModelDownloader`` takes its table from the attribute ``data_frame``:

    zoo = ModelDownloader("cache")
    zoo.data_frame = pandas.read_csv("https://host/zoo/table.csv", dtype=str)
    zoo.download_and_unpack("<name>")
"""

from __future__ import annotations

import csv
from pathlib import Path

from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_write

# espnet_model_zoo's columns; it ignores the last one, which is ours.
COLUMNS = (
    "corpus",
    "task",
    "name",
    "url",
    "fs",
    "lang",
    "gender",
    "pytorch",
    "espnet",
    "commit",
    "valid",
    "sha256",
)

TableRow = dict[str, str]


def read_table(path: str | Path) -> list[TableRow]:
    """Rows of a table, none if it does not exist yet."""
    path = Path(path)
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if not {"name", "url"} <= set(reader.fieldnames or ()):
            raise UserError(
                f"{path}: expected columns name and url; give the folder of a model zoo"
            )
        return list(reader)


def with_row(rows: list[TableRow], row: TableRow) -> list[TableRow]:
    """The table with ``row`` in place of those of the same name, the others untouched."""
    return [*(other for other in rows if other["name"] != row["name"]), row]


def write_table(path: str | Path, rows: list[TableRow]) -> None:
    """Write a table; columns of others are kept after ours."""
    extra = [name for row in rows for name in row if name not in COLUMNS]
    columns = [*COLUMNS, *dict.fromkeys(extra)]
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
