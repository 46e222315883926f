#!/usr/bin/env python3
"""Rebuild the tables of README.md and docs/*.md from files that the project generated.

    tools/update_readme.py                          tables from what is in the repository
    tools/update_readme.py egs2/mini/tf_moe/exp/X   first take over X/RESULTS.json
    tools/update_readme.py --check                  exit status 1 if one is out of step

Sources: egs2/<corpus>/<model>/results/*.json (copies of an experiment's RESULTS.json),
test/golden/models.json (parameter counts of every training configuration), the recipes themselves
(egs2/<corpus>/<model>/run.sh, test/recipes/test_pairs.py), and what tools leave in bench/:
published.json (tools/published.py), libri2mix.json, align.json and speed.json (tools/bench_*.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bench_common
import published

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.files import atomic_write
from espnet2_sepx.report.results import format_interval, format_score, quantity

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
GOLDEN = ROOT / "test/golden/models.json"
PAIRS_TEST = ROOT / "test/recipes/test_pairs.py"
ALIGNMENTS = {  # of bench/align.json
    "plain": "correlation of waveforms in the overlap",
    "espnet": "SI-SNR in the overlap",
    "ours": "our aligner",
}
COUNTED = ("joints", "swaps")
SPEED_TOOLS = ("bench_tf_moe", "bench_re_sepformer", "bench_dsn", "bench_spmamba")
_RE_SEPFORMER = ("bench_re_sepformer", "RE-SepFormer, 1 thread(s)")
_TF_MOE = ("bench_tf_moe", "Inference, 2.4 s at 16 kHz")
_DSN = ("bench_dsn", "4 s of audio")
_SPMAMBA = ("bench_spmamba", "Whole models at 16 kHz")
SPEED = [  # of bench/speed.json: what, beside what, where the ratios of time and of memory are
    ("TF-MoE, 12 experts", "one expert", (*_TF_MOE, "MoE E=12", "over dense"), None),
    *(
        (
            f"RE-SepFormer, {length} of audio",
            "SpeechBrain's, same weights",
            (*_RE_SEPFORMER, length, "time, ours / speechbrain"),
            (*_RE_SEPFORMER, length, "memory, ours / speechbrain"),
        )
        for length in ("1 s", "4 s", "64 s")
    ),
    *(
        (f"DSN, {widths}", "dense, full width", (*_DSN, widths, "time, ratio"), None)
        for widths in ("width 1", "mixed, runs of 200 ms", "width 0.5", "width 0.125")
    ),
    *(
        (
            "SPMamba" + form,
            "ESPnet's TF-GridNet of its paper",
            (*_SPMAMBA, "SPMamba" + form, "time, ratio"),
            (*_SPMAMBA, "SPMamba" + form, "memory, ratio"),
        )
        for form in ("", ", portable")
    ),
]
OURS = "egs2/mini/"  # all other corpora are those of papers


def take_over(experiment: Path) -> None:
    """Copy an experiment's RESULTS.json to ``results/`` of its recipe; paths begin at the root."""
    source = experiment.resolve() / "RESULTS.json"
    if not source.is_file():
        raise UserError(f"{source}: no such file; run stages 1 to 7 of the recipe first")
    corpus, model = source.parts[-5:-3]  # egs2/<corpus>/<model>/exp/<tag>, also of another clone
    target = ROOT / "egs2" / corpus / model / "results" / f"{source.parent.name}.json"
    if not target.parents[1].is_dir():
        raise UserError(f"{source}: expected .../egs2/<corpus>/<model>/exp/<tag>/RESULTS.json")
    target.parent.mkdir(exist_ok=True)
    text = source.read_text(encoding="utf-8").replace(f"{source.parents[5]}/", "")
    target.write_text(text, encoding="utf-8")
    print(f"{target.relative_to(ROOT)} updated")


def results_table() -> str:
    """One row per experiment and test set."""
    rows = [
        "| recipe | experiment, set | params | MAC/s, weight layers | MAC/s, all | RTF, 1 thread "
        "| SI-SNRi dB [95 %] | SDRi dB | PESQ | STOI |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    processors = set()
    for path in sorted(ROOT.glob("egs2/*/*/results/*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        cost = results.get("cost") or {}
        macs, rtf = cost.get("macs_per_second") or {}, cost.get("rtf") or {}
        processors.add((cost.get("environment") or {}).get("processor"))
        for name, scores in results["scores"].items():
            metrics = (scores or {}).get("metrics", {})
            cells = [
                f"`{path.parents[1].relative_to(ROOT / 'egs2')}`",
                f"{path.stem}, {name}",
                quantity((cost.get("parameters") or {}).get("total")),
                quantity(macs.get("weights")),
                quantity(macs.get("all")),
                f"{rtf['median']:.3f}" if "median" in rtf else quantity(None),
                *(_score(metrics, metric) for metric in ("si_snri", "sdri", "pesq", "stoi")),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    names = ", ".join(sorted(str(processor) for processor in processors if processor))
    return "\n".join(rows) + f"\n\nRTF measured on: {names or 'no result yet'}."


def _score(metrics: dict, metric: str) -> str:
    entry = metrics.get(metric) or {}
    text = format_score(metric, entry.get("mean"))
    interval = format_interval(metric, entry) if metric == "si_snri" else ""
    return f"{text} {interval}".strip()


def models_table() -> str:
    """Parameter counts of the paper's configurations, as built by the tests."""
    rows = [
        "| configuration | corpus | row of the paper | parameters, exactly |",
        "|---|---|---|---|",
    ]
    for config, entry in sorted(json.loads(GOLDEN.read_text(encoding="utf-8")).items()):
        if not config.startswith(OURS):
            corpus, what = _header(ROOT / config)
            name = f"[`{Path(config).stem}`](../{config})"
            rows.append(f"| {name} | {corpus} | {what} | {entry['parameters']:,} |")
    return "\n".join(rows)


def _header(config: Path) -> tuple[str, str]:
    """Corpus and row from the comment at the top of a configuration: its first line cites the
    paper, its second one names the corpus, the others say which row it is."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), config.read_text().splitlines())
    _, corpus, *what = (line.strip("# ") for line in lines)
    return corpus.rstrip("."), " ".join(what)


def pairs_table() -> str:
    """One row per recipe: what it runs, and how far it has been tried."""
    built = json.loads(GOLDEN.read_text(encoding="utf-8"))
    covered = re.findall(r"^CORPORA = \((.*)\)$", PAIRS_TEST.read_text(encoding="utf-8"), re.M)
    tested = re.findall(r'"(\w+)"', covered[0])
    rows = [
        "| recipe | what | configuration | builds | corpus prepared in tests "
        "| stages 1 to 7 in tests | trained |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(ROOT.glob("egs2/*/*/run.sh")):
        text = path.read_text(encoding="utf-8")
        pair = path.parent.relative_to(ROOT / "egs2")
        what = text.splitlines()[1].removeprefix("# ").rstrip(".")
        config = (path.parent / re.search(r"^[^#\n]*--enh_config (\S+)", text, re.M)[1]).resolve()
        config = config.relative_to(ROOT).as_posix()
        results = list((path.parent / "results").glob("*.json"))
        known = pair.parts[0] in (*tested, "mini")
        cells = [
            f"[`{pair}`](../egs2/{pair}/run.sh)",
            what,
            f"[`{Path(config).stem}`](../{config})",
            "yes" if config in built else "no",
            "yes" if known else "no",
            "yes" if known else "no",
            f"yes ({len(results)})" if results else "no",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def generation_table() -> str:
    """Time of generating Libri2Mix."""
    results = json.loads((ROOT / "bench/libri2mix.json").read_text(encoding="utf-8"))
    rows = [
        "| Libri2Mix | ours | official script | ratio | ratio of processor time | equal files |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for entry in results["times"]:
        clock, cpu = entry["seconds"], entry["cpu_seconds"]
        rows.append(
            f"| {entry['rate']} {entry['length']}, {', '.join(entry['kinds'])} | {clock['ours']} s "
            f"| {clock['official']} s | {clock['ratio']:.2f} | {cpu['ratio']:.2f} "
            f"| {entry['equal_files']} |"
        )
    return "\n".join(rows) + (
        f"\n\n{results['rows']} mixtures, {results['processes']} processes, medians of "
        f"{results['rounds']} rounds."
    )


def align_table() -> str:
    """How often speakers swap, by how chunks are matched."""
    results = json.loads((ROOT / "bench/align.json").read_text(encoding="utf-8"))
    rows = ["| chunks | matched by | joints | swaps | per joint |", "|---|---|---:|---:|---:|"]
    for setting, run in results["runs"].items():
        for way, name in ALIGNMENTS.items():
            joints, swaps = (sum(row[way][key] for row in run.values()) for key in COUNTED)
            rows.append(f"| {setting} | {name} | {joints} | {swaps} | {swaps / joints:.3f} |")
    return "\n".join(rows) + (
        f"\n\n{len(run)} conversations of {results['conversation_s']:g} s, `{results['model']}`; "
        "where this model changes streams within a chunk, no order of chunks mends it."
    )


def speed_table() -> str:
    """What the speed of our systems is beside a named peer's, in short."""
    rows = ["| | beside | time | memory |", "|---|---|---:|---:|"]
    for what, peer, time, memory in SPEED:
        cells = [
            what,
            peer,
            *(f"{bench_common.value(*at):.2f}" if at else "" for at in (time, memory)),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


BLOCKS: dict[Path, dict[str, Callable[[], str]]] = {
    README: {
        "results": results_table,
        "align": align_table,
        "cost": published.cost_table,
        "speed": speed_table,
    },
    DOCS / "SPEED.md": {tool: partial(bench_common.markdown, tool) for tool in SPEED_TOOLS},
    DOCS / "CONFIGURATIONS.md": {"models": models_table},
    DOCS / "PROFILING.md": {"published": published.table},
    DOCS / "RECIPES.md": {"generation": generation_table, "pairs": pairs_table},
}


def rebuilt(path: Path, text: str) -> str:
    """The text of a file with every generated block made anew."""
    for name, table in BLOCKS[path].items():
        pattern = rf"(<!-- {name}: begin[^>]*-->\n).*?(<!-- {name}: end -->)"
        made = table()
        text, found = re.subn(pattern, lambda m, t=made: f"{m[1]}{t}\n{m[2]}", text, flags=re.S)
        if found != 1:
            raise UserError(f"{path}: expected one block '<!-- {name}: begin -->'")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", type=Path, help="experiment folders to take over")
    parser.add_argument("--check", action="store_true", help="change nothing; compare only")
    args = parser.parse_args()
    for experiment in args.experiments:
        take_over(experiment)
    stale = 0
    for path in BLOCKS:
        old = path.read_text(encoding="utf-8")
        new = rebuilt(path, old)
        if args.check and new != old:
            name = path.relative_to(ROOT)
            print(f"{name} is out of step; run tools/update_readme.py", file=sys.stderr)
            stale = 1
        elif not args.check:
            with atomic_write(path) as stream:
                stream.write(new)
    return stale


if __name__ == "__main__":
    run_cli(main)
