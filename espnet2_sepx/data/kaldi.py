"""Kaldi's text tables: ``<key> <value>`` a line, sorted as ``LC_ALL=C sort`` does, UTF-8.

Tables of a data directory: ``*.scp`` (key to path), ``utt2spk`` and its reverse ``spk2utt``,
``utt2overlap``, ``utt2category``, ``source2spk``, ``utt2num_samples``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_write


def c_order(key: str) -> bytes:
    """Sorting key of the C locale: bytes, not characters."""
    return key.encode("utf-8")


def read_scp(path: str | Path) -> dict[str, str]:
    """Read a table in the order of its lines.

    Raises:
        UserError: missing or unreadable file, line without value, key given twice.
    """
    table: dict[str, str] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        fields = line.strip().split(maxsplit=1)
        if len(fields) != 2:
            raise UserError(
                f"{path}:{number}: expected '<key> <value>', got {line!r}; correct the line, or "
                "prepare the data again"
            )
        key, value = fields
        if key in table:
            raise UserError(f"{path}:{number}: key {key!r} is there twice; remove one of the lines")
        table[key] = value
    return table


def write_scp(path: str | Path, table: Mapping[str, object]) -> None:
    """Write a table, sorted, whole or not at all.

    Raises:
        UserError: a key that is empty or holds blanks, or a value that is empty or holds a newline.
    """
    lines = []
    for key in sorted(table, key=c_order):
        value = str(table[key])
        if key.split() != [key] or not value.strip() or "\n" in value:
            raise UserError(
                f"{path}: cannot write key {key!r} with value {value!r}; a key has no blanks, a "
                "value is one line"
            )
        lines.append(f"{key} {value}\n")
    with atomic_write(path) as stream:
        stream.writelines(lines)


def spk2utt_from_utt2spk(utt2spk: Mapping[str, str]) -> dict[str, str]:
    """Reverse ``utt2spk``: speaker -> its utterances, sorted, separated by blanks."""
    utterances: dict[str, list[str]] = {}
    for utterance in sorted(utt2spk, key=c_order):
        utterances.setdefault(utt2spk[utterance], []).append(utterance)
    return {speaker: " ".join(names) for speaker, names in utterances.items()}


def utt2spk_from_spk2utt(spk2utt: Mapping[str, str]) -> dict[str, str]:
    """Reverse ``spk2utt``: utterance -> its speaker.

    Raises:
        UserError: an utterance with two speakers.
    """
    utt2spk: dict[str, str] = {}
    for speaker, names in spk2utt.items():
        for utterance in names.split():
            if utterance in utt2spk:
                raise UserError(
                    f"spk2utt: utterance {utterance!r} belongs to {utt2spk[utterance]!r} and "
                    f"{speaker!r}; give it to one"
                )
            utt2spk[utterance] = speaker
    return utt2spk


def _read_lines(path: str | Path) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; prepare the data first, or correct the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; convert it, e.g. with iconv") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return lines if lines[-1] else lines[:-1]
