"""Says what is installed, what is missing, which fast kernels are in use, and why not.

Exit status 0: everything that training and separation need is there. 1: something is not; each such
line says how to mend it. Missing extras alone are no failure.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import ModuleType

from espnet2_sepx import _hook
from espnet2_sepx.errors import run_cli

PACKAGE = "espnet2_sepx"
SUPPORTED_PYTHONS = ((3, 10), (3, 12))
FIRST_BAD_NUMPY = (2, 4)
MIN_FREE_GB = 2.0
FORMATS = ("WAV", "FLAC", "OGG", "MP3")
PROGRAMS = {"bash": "recipes", "flock": "recipes", "sha256sum": "recipes", "git": "lint and clean"}

EXTRAS = {
    "score": "SDR, STOI and ESTOI in the scores",
    "pesq": "PESQ in the scores (built from source: needs a C compiler)",
    "mini": "generated speech for the recipe egs2/mini; not needed with --speech_dir",
    "report": "the HTML report of stage 7",
    "wsj0": "WSJ0 as distributed, in shorten-compressed SPHERE files",
    "recipes": "all of these: whatever stages 1 to 9 of a recipe can use",
    "test": "make test",
    "lint": "make lint",
    "dev": "all of these, as `make venv` does",
}

OK, NOTE, FAIL = "ok", "note", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    section: str
    name: str
    status: str  # OK, NOTE or FAIL; only FAIL makes the exit status 1
    detail: str
    remedy: str = ""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--full",
        action="store_true",
        help="also import ESPnet in a fresh interpreter and in a spawned child (some 20 s)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = get_parser().parse_args(arguments)
    findings = [*examine(args.full)]
    healthy = all(finding.status != FAIL for finding in findings)
    if args.json:
        print(json.dumps({"ok": healthy, "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        print_findings(findings)
    return 0 if healthy else 1


def examine(full: bool = False) -> Iterator[Finding]:
    """All findings, section by section."""
    yield from check_python()
    yield from check_packages()
    yield from check_hook()
    if full:
        yield from check_names()
    yield from check_extras()
    yield from check_torch()
    yield from check_machine()


def print_findings(findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            print(f"\n{section}" if finding is not findings[0] else section)
        print(f"  {finding.status:<4}  {finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            print(f"  {'':<4}  {'':<{width}}  -> {finding.remedy}")
    failures = sum(finding.status == FAIL for finding in findings)
    print(f"\n{failures} to mend (FAIL)" if failures else "\nReady for training and separation.")


# ---- Python and packages -----------------------------------------------------------------------


def check_python() -> Iterator[Finding]:
    version = platform.python_version()
    lowest, highest = (".".join(map(str, bound)) for bound in SUPPORTED_PYTHONS)
    remedy = f"tested are {lowest} to {highest}: make venv PYTHON=python{highest}"
    status = OK
    if sys.version_info[:2] < SUPPORTED_PYTHONS[0]:
        status = FAIL
    elif sys.version_info[:2] > SUPPORTED_PYTHONS[1]:
        status = NOTE
    detail = f"{version} ({sys.executable})"
    yield Finding("Python", "interpreter", status, detail, "" if status == OK else remedy)


def check_packages() -> Iterator[Finding]:
    """The core dependencies as our own metadata lists them."""
    section, remedy = "Packages", "make venv, or pip install -e . in the repository"
    version = installed_version(PACKAGE)
    folder = os.path.dirname(_hook.__file__)
    if version is None:
        yield Finding(section, PACKAGE, FAIL, f"not installed, runs from {folder}", remedy)
        return
    yield Finding(section, PACKAGE, OK, f"{version} ({folder})")
    for name in requirements()[""]:
        version = installed_version(name)
        if version is None:
            yield Finding(section, name, FAIL, "not installed", remedy)
        else:
            yield Finding(section, name, OK, version)
    yield from check_numpy(installed_version("numpy"))


def check_numpy(version: str | None) -> Iterator[Finding]:
    if version is not None and version_tuple(version) >= FIRST_BAD_NUMPY:
        yield Finding(
            "Packages",
            "numpy",
            NOTE,
            f"{version}: `iterator_type: chunk` of ESPnet 202511 fails from NumPy 2.4 on "
            "(our recipes do not use it)",
            'pip install "numpy<2.4" if your own recipes do',
        )


def check_extras() -> Iterator[Finding]:
    if installed_version(PACKAGE) is None:
        return
    extras = requirements()
    for extra, purpose in EXTRAS.items():
        missing = [name for name in extras.get(extra, []) if installed_version(name) is None]
        yield Finding(
            "Extras",
            extra,
            NOTE if missing else OK,
            purpose + (f"; missing: {', '.join(missing)}" if missing else ""),
            f'pip install "{PACKAGE}[{extra}]"' if missing else "",
        )


def requirements() -> dict[str, list[str]]:
    """Distribution names by extra; the core's stand under the empty name."""
    names: dict[str, list[str]] = {"": []}
    for line in importlib.metadata.requires(PACKAGE) or []:
        requirement, _, marker = line.partition(";")
        match = re.search(r"""extra\s*==\s*["']([^"']+)["']""", marker)
        name = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
        if name is not None:
            names.setdefault(match.group(1) if match else "", []).append(name.group())
    return names


def installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


# ---- Registration with ESPnet ------------------------------------------------------------------


def check_hook() -> Iterator[Finding]:
    """Whether this interpreter started with our import hook in place."""
    if _hook.is_disabled():
        status, detail = NOTE, f"switched off by {_hook.DISABLE_VARIABLE} in the environment"
        remedy = f"unset {_hook.DISABLE_VARIABLE}, or call espnet2_sepx.register() yourself"
    elif not _hook.is_installed():
        status, detail = FAIL, "missing: stock ESPnet commands do not know our names"
        remedy = "make venv, or call espnet2_sepx.register() yourself"
    else:
        status, detail, remedy = OK, "active at interpreter start", ""
    yield Finding("Registration", "start-up hook", status, detail, remedy)


def check_names() -> Iterator[Finding]:
    """Start two interpreters that import only ESPnet, and compare with our table."""
    import concurrent.futures
    import multiprocessing

    code = "from espnet2_sepx.bin import doctor; print('\\n'.join(doctor.names_in_espnet()))"
    fresh = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        spawned = pool.submit(names_in_espnet)
        yield names_finding("fresh interpreter", set(fresh.communicate()[0].split()))
        yield names_finding("spawned child", set(spawned.result()))


def names_finding(where: str, present: set[str]) -> Finding:
    from espnet2_sepx.registration import TABLE

    missing = [row.name for row in TABLE if f"{row.choices}:{row.name}" not in present]
    return Finding(
        "Registration",
        where,
        FAIL if missing else OK,
        f"ESPnet lacks {', '.join(missing)}" if missing else "ESPnet knows all our names",
        "see the message that ESPnet's import printed" if missing else "",
    )


def names_in_espnet() -> list[str]:
    """``<choices>:<name>`` of all that the ``enh`` task knows, by importing only that task."""
    from espnet2.tasks import enh
    from espnet2.train.class_choices import ClassChoices

    choices = {key: value for key, value in vars(enh).items() if isinstance(value, ClassChoices)}
    return [f"{key}:{name}" for key, value in choices.items() for name in value.classes]


# ---- torch and its kernels ---------------------------------------------------------------------


def check_torch() -> Iterator[Finding]:
    section = "Computation"
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(section, "torch", FAIL, f"cannot be imported: {error}", "reinstall torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding(
        section,
        "torch",
        OK,
        f"{torch.__version__}, built for {build}; {torch.get_num_threads()} threads, {capability}",
    )
    for name, check in KERNELS.items():
        status, detail = check(torch)
        yield Finding(section, name, status, detail)


def gpu(torch: ModuleType) -> tuple[str, str]:
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return OK, ", ".join(torch.cuda.get_device_name(device) for device in devices)
    if not torch.version.cuda:
        return NOTE, "not used: this torch is built for the CPU only"
    return NOTE, "not used: torch sees no CUDA device (no card, or no driver: see nvidia-smi)"


def onednn(torch: ModuleType) -> tuple[str, str]:
    from espnet2_sepx.layers.kernels import onednn_linear

    operator, reason = onednn_linear()
    return (NOTE, f"not used: {reason}") if operator is None else (OK, reason)


def fused_attention(torch: ModuleType) -> tuple[str, str]:
    where = "GPU" if torch.cuda.is_available() else "CPU"
    return OK, f"torch's scaled_dot_product_attention on the {where}"


def selective_scan(torch: ModuleType) -> tuple[str, str]:
    from espnet2_sepx.layers import scan

    backends = scan.explain()
    used = next(name for name, usable, _ in backends if usable)
    detail = "; ".join(f"{name}: {reason}" for name, _, reason in backends)
    forced = os.environ.get(scan.VARIABLE)
    if forced:
        return NOTE, f"{forced}, asked for by {scan.VARIABLE} ({detail})"
    return (NOTE if used == "torch" else OK), f"{used} ({detail})"


def expert_routing(torch: ModuleType) -> tuple[str, str]:
    from espnet2_sepx.layers import moe_compiled

    used, reason = moe_compiled.explain()
    return (OK, f"{reason}, float32 on the CPU") if used else (NOTE, f"not used: {reason}")


def flash_attn(torch: ModuleType) -> tuple[str, str]:
    return OK, "not needed by any of our models; ESPnet's message that it is missing is harmless"


KERNELS: dict[str, Callable[[ModuleType], tuple[str, str]]] = {
    "GPU": gpu,
    "oneDNN products": onednn,
    "fused attention": fused_attention,
    "selective scan": selective_scan,
    "expert routing": expert_routing,
    "flash_attn": flash_attn,
}
"""Optional kernels: name -> function of the torch module that says (status, use or why not)."""


# ---- The machine -------------------------------------------------------------------------------


def check_machine() -> Iterator[Finding]:
    section = "Machine"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(section, "system", OK, f"{platform.system()} {platform.machine()}, {cores} cores")
    free = shutil.disk_usage(os.getcwd()).free / 1e9
    enough = free >= MIN_FREE_GB
    yield Finding(
        section,
        "disk",
        OK if enough else NOTE,
        f"{free:.0f} GB free here",
        "" if enough else f"an experiment wants {MIN_FREE_GB:.0f} GB; free some space",
    )
    yield from check_audio()
    for program, user in PROGRAMS.items():
        found = shutil.which(program)
        remedy = "" if found else f"install it with your system's packages (needed by {user})"
        yield Finding(section, program, OK if found else NOTE, found or "not found", remedy)


def check_audio() -> Iterator[Finding]:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        remedy = "pip install --force-reinstall soundfile"
        yield Finding("Machine", "audio files", FAIL, f"no libsndfile: {error}", remedy)
        return
    formats = soundfile.available_formats()
    known = [name for name in FORMATS if name in formats]
    detail = f"{', '.join(known)} and {len(formats) - len(known)} more formats"
    version = soundfile.__libsndfile_version__
    detail = f"libsndfile {version}: {detail}; sox and ffmpeg are not used"
    yield Finding("Machine", "audio files", OK, detail)


if __name__ == "__main__":
    run_cli(main)
