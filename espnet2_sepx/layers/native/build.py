"""Builds ``kernel.c`` on first use and loads it; says why when it cannot.

Any C compiler with GNU vector types will do (gcc, clang); neither torch's headers nor C++ are
needed. The library goes to ``$ESPNET2_SEPX_CACHE`` or the user's cache folder under a name that
holds a hash of source, options and instruction set, and appears there whole or not at all.
Processors with and without AVX-512 that share a home folder get different files.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernel.c")
HEADERS = ("vectors.h", "scan.h", "conv.h", "mixture.h")
CACHE_VARIABLE = "ESPNET2_SEPX_CACHE"
OPTIONS = ("-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-w")
INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
    "baseline": (),
}
"""Compiler options by name; ``baseline`` is what every processor of the architecture has."""
PARALLEL = (
    (("-fopenmp",), ()),  # torch's OpenMP, loaded already: one pool of threads for both
    (("-fopenmp",), ("-fopenmp",)),
    ((), ()),
)
"""Options for compiling and for linking, to be tried in this order."""
TIMEOUT_S = 120


class Unavailable(Exception):
    """The kernel cannot be used here; the message says why, in one line."""


def instruction_set() -> str:
    """The widest one that torch finds on this processor (``ATEN_CPU_CAPABILITY`` narrows it)."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if capability in INSTRUCTION_SETS else "baseline"


@functools.cache
def load(isa: str) -> ctypes.CDLL:
    """The library for one of ``INSTRUCTION_SETS``, from the cache or built now.

    Raises:
        Unavailable: no compiler, a failed compilation, or a cache that cannot be written.
    """
    path = cache_folder() / f"sepx-{_fingerprint(isa)}.so"
    try:
        if not path.exists():
            _build(path, isa)
        _check_owner(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(
            f"{error.strerror or error} ({path}); set {CACHE_VARIABLE} to a folder of yours"
        ) from error


def cache_folder() -> Path:
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "espnet2_sepx"


def _fingerprint(isa: str) -> str:
    options = f"{platform.system()} {platform.machine()} {OPTIONS} {INSTRUCTION_SETS[isa]}"
    digest = hashlib.sha256(options.encode())
    for source in (SOURCE, *map(SOURCE.with_name, HEADERS)):
        digest.update(source.read_bytes())
    return f"{isa}-{digest.hexdigest()[:16]}"


def _check_owner(path: Path) -> None:
    """A library is executed, so nobody else may have put it there."""
    if hasattr(os, "getuid") and path.stat().st_uid not in (os.getuid(), 0):
        raise Unavailable(f"{path} belongs to another user; set {CACHE_VARIABLE}")


def compiler() -> list[str]:
    """``$CC``, or the first of cc, gcc and clang."""
    if named := shlex.split(os.environ.get("CC", "")):
        return named
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is None:
        raise Unavailable("no C compiler (cc, gcc or clang) is on the PATH")
    return [found]


def _build(path: Path, isa: str) -> None:
    command = compiler()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unit, library = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        for to_compile, to_link in PARALLEL:
            options = [*OPTIONS, *INSTRUCTION_SETS[isa], *to_compile]
            failure = _run([*command, *options, "-c", str(SOURCE), "-o", str(unit)])
            if failure is None:
                link = [*command, "-shared", *to_link, str(unit), "-o", str(library), "-lm"]
                failure = _run(link) or _trial(library)
            if failure is None:
                os.replace(library, path)
                return
    raise Unavailable(f"{command[0]} cannot build the kernel: {failure}")


def _run(command: list[str]) -> str | None:
    """Execute; None, or what went wrong in one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), "\n".join(lines[:1]) or "no message")


def _trial(library: Path) -> str | None:
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None
