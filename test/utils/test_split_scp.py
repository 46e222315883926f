"""utils/split_scp.py."""

import subprocess
import sys
from pathlib import Path

import pytest

SPLIT = [sys.executable, str(Path(__file__).parents[2] / "utils" / "split_scp.py")]


@pytest.fixture
def split(tmp_path):
    (tmp_path / "in.scp").write_text("".join(f"é{number} /x y\n" for number in range(10)))

    def run(*arguments):
        return subprocess.run(
            [*SPLIT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def test_parts_in_order_make_the_whole(split, tmp_path):
    assert split("in.scp", "out/1", "out/2", "out/3", "out/4").returncode == 0
    parts = [(tmp_path / "out" / name).read_text() for name in "1234"]
    assert [part.count("\n") for part in parts] == [3, 3, 2, 2]
    assert "".join(parts) == (tmp_path / "in.scp").read_text()


def test_one_part_only(split, tmp_path):
    expected = "é6 /x y\né7 /x y\n"
    assert split("-j", "4", "2", "in.scp").stdout == expected
    assert split("-j", "4", "3", "--one-based", "in.scp", "out").stdout == ""
    assert (tmp_path / "out").read_text() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.scp", "a"], "cannot read none.scp: No such file or directory"),
        (["in.scp", *map(str, range(11))], "in.scp has 10 lines, too few for 11 parts"),
        (["in.scp"], "give the files to write"),
        (["-j", "4", "4", "in.scp"], "there is no part 4 of 4"),
        (["in.scp", "/proc/none"], "cannot write /proc/none"),
    ],
)
def test_wrong_use(split, arguments, message):
    result = split(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: split_scp.py: {message}")
