"""What a generated corpus has to say about itself; the rest is done by ``generate``.

All three that papers build from single-speaker speech lie on disk alike:

    <root>/wav{8k,16k}/{min,max}/<subset>/<kind>/<name>.wav        kinds: mix..., s1, s2, noise

Legend: N samples of a mixture.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Variant(NamedTuple):
    """Sampling rate in Hz, and ``min`` (cut to the shortest) or ``max`` (padded to the longest)."""

    fs: int
    mode: str

    @property
    def folder(self) -> str:
        return f"wav{self.fs // 1000}k/{self.mode}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A mixture: of which files it is made (``files``), and what it is called.

    Attributes:
        name: of its files, without extension.
        utt: its key in the tables.
        speakers: of source 1 and 2.
        files: the material, in an order the corpus knows.
        values: numbers the corpus needs: gains, levels, offsets.
    """

    name: str
    utt: str
    speakers: tuple[str, str]
    files: tuple[str, ...]
    values: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Subset:
    """Mixtures that go into one folder, and the set of tables made of it."""

    name: str
    set_name: str
    rows: Sequence[Row]


@dataclasses.dataclass
class Made:
    """A subset as it is on disk now, or would be: its rows, and their lengths by variant.

    ``samples`` is empty for a subset that was there already.
    """

    subset: Subset
    rows: list[Row]
    samples: dict[Variant, dict[str, int]]


class Corpus(abc.ABC):
    """A corpus to be generated. Sent to worker processes, so it holds no table.

    Attributes:
        name: for messages and markers.
        root: folder of the tree above.
        variants: what is made of every mixture.
        subtype: of the files, ``PCM_16`` or ``FLOAT``.
        kinds: folders of a subset.
        sums: which kinds are the sum of which others.
        mixture: the kind that is the input of a separator.
    """

    name: str
    root: Path
    variants: tuple[Variant, ...]
    subtype: str
    kinds: tuple[str, ...]
    sums: Mapping[str, tuple[str, ...]]
    mixture: str

    def rates(self, row: Row) -> tuple[int, ...]:
        """Sampling rate that each file of a row must have."""
        return (16000,) * len(row.files)

    @abc.abstractmethod
    def samples(self, row: Row, frames: Sequence[int], variant: Variant) -> int:
        """N of a mixture, of material with so many frames."""

    @abc.abstractmethod
    def render(
        self, row: Row, frames: Sequence[int]
    ) -> Iterator[tuple[Variant, dict[str, np.ndarray]]]:
        """The signals of a mixture by kind, ``(N,)`` int16 or float32, for every variant."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What, besides its rows, determines the audio; goes into the marker of a finished set."""

    def folder(self, variant: Variant, subset: str) -> Path:
        return self.root / variant.folder / subset


def resampled_length(frames: int, fs_in: int, fs_out: int) -> int:
    """Samples that ``scipy.signal.resample_poly`` makes of so many."""
    return -(-frames * fs_out // fs_in)


def partial_of(folder: Path) -> Path:
    """Where a subset is built that is to become ``folder``."""
    return folder.with_name(f".{folder.name}.partial")
