"""Files that appear whole or not at all, and small helpers for command lines."""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from espnet2_sepx.errors import UserError


@contextmanager
def _user_error(path: Path) -> Iterator[None]:
    """Within the block the system's refusal to write becomes a ``UserError`` about ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose a folder you may write to"
        ) from error


def temporary_beside(path: Path) -> Path:
    """A name in the same folder, so that the final rename stays within one file system.

    Leftovers of killed processes of this machine are removed on the way.
    """
    prefix = f".{path.name}.tmp-{socket.gethostname()}-"
    with _user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"{glob.escape(prefix)}*"):
            if not _is_running(stale.name[len(prefix) :]):
                remove(stale)
    return path.with_name(f"{prefix}{os.getpid()}")


def _is_running(pid: str) -> bool:
    """Whether a process may still write; one that has ended but was not yet collected may not."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's process
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:  # no Linux, or it has just gone
        return not Path("/proc/self").exists()
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def remove(path: Path) -> None:
    """Delete a file or a folder; nothing happens when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that replaces ``path`` only if the block ends without an error."""
    path = Path(path)
    temporary = temporary_beside(path)
    encoding = None if "b" in mode else "utf-8"
    with _user_error(path):
        stream = open(temporary, mode, encoding=encoding)  # noqa: SIM115 (closed below)
    try:
        with stream:
            yield stream
        with _user_error(path):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a new empty folder that takes the place of ``path`` if the block ends well.

    An older ``path`` is removed only after the new one is complete.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    shutil.rmtree(temporary, ignore_errors=True)
    with _user_error(path):
        temporary.mkdir()
    try:
        yield temporary
        with _user_error(path):
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def str2bool(value: str) -> bool:
    """``true`` or ``false`` on a command line (ESPnet's style), anything else is an error."""
    lowered = value.lower()
    if lowered not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {value!r}")
    return lowered == "true"
