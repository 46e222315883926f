"""The parts of a report that need audio: examples to listen to, and a look into the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet2_sepx.errors import UserError
from espnet2_sepx.report.collect import Experiment, Missing
from espnet2_sepx.report.examples import (
    Example,
    Signals,
    choose,
    excerpt_seconds,
    make_example,
    open_set,
    read_audio,
)
from espnet2_sepx.report.routing import (
    FigureInput,
    Router,
    expert_shares,
    three_parts,
)
from espnet2_sepx.report.routing_view import routing_section
from espnet2_sepx.report.widths import WidthMeter, width_figure, widths_section

ROUTED_SEPARATORS = ("tf_moe",)
SLIMMABLE_SEPARATORS = ("dsn",)
WIDTH_FIGURES = 3


def build_examples(experiment: Experiment, count: int, fs: int | None) -> dict[str, list[Example]]:
    """``count`` mixtures of every set whose data folder is known, by name of the set."""
    opened = {item.name: open_set(item) for item in experiment.sets}
    chosen: list[tuple[str, Signals, dict[str, Any], str, str]] = []
    for item in experiment.sets:
        signals = opened[item.name]
        if signals is not None:
            rows = {row["utt"]: row for row in item.rows}
            for utt, why in choose(item.rows, list(signals.mixture), count):
                chosen.append((item.name, signals, rows.get(utt, {}), utt, why))
    tracks = sum(signals.tracks for _, signals, _, _, _ in chosen)
    examples: dict[str, list[Example]] = {}
    for name, signals, row, utt, why in tqdm(chosen, desc="examples", unit="mixture"):
        rate = fs or read_audio(signals.mixture[utt], None)[1]
        example = make_example(signals, row, utt, why, excerpt_seconds(tracks, rate), rate)
        examples.setdefault(name, []).append(example)
    return examples


def build_routing(
    experiment: Experiment, examples: dict[str, list[Example]]
) -> dict[str, Any] | None:
    """The routing section; None for a system without experts or when it cannot be made.

    A section that should be there and is not is added to ``experiment.missing``.
    """
    config = experiment.directory / "config.yaml"
    if experiment.separator not in ROUTED_SEPARATORS or not _has_experts(experiment):
        return None
    found = _shown(experiment, examples, "routing of the experts")
    if found is None:
        return None
    signals, shown, model_file = found
    try:
        router = Router(config, model_file)
    except UserError as error:
        experiment.missing.append(Missing("routing of the experts", config, 3, str(error)))
        return None
    passes = []
    for example in tqdm(shown, desc="routing", unit="mixture"):
        mixture, rate = read_audio(signals.mixture[example.utt], example.fs)
        passes.append(router(mixture[: round(example.shown * rate)], rate))
    num_experts = router.num_experts
    hop = int(experiment.encoder_conf.get("hop_length", 128))
    window = int(experiment.encoder_conf.get("n_fft", 4 * hop))
    figure = _figure_input(signals, shown, hop)
    records = router(figure.signal, figure.fs) if figure else []
    return routing_section(
        figure,
        records,
        expert_shares(passes, num_experts),
        num_experts,
        window,
        hop,
        len(passes),
        router.separator.bands,
    )


def build_widths(
    experiment: Experiment, examples: dict[str, list[Example]]
) -> dict[str, Any] | None:
    """The section on a DSN's widths; None for other systems or when it cannot be made.

    A section that should be there and is not is added to ``experiment.missing``.
    """
    if experiment.separator not in SLIMMABLE_SEPARATORS:
        return None
    figures = _width_figures(experiment, examples) if _has_gate(experiment) else []
    if not figures and experiment.budgets is None:
        return None
    return widths_section(figures, experiment.budgets)


def _width_figures(
    experiment: Experiment, examples: dict[str, list[Example]]
) -> list[dict[str, Any]]:
    found = _shown(experiment, examples, "widths over time")
    if found is None:
        return []
    signals, shown, model_file = found
    config = experiment.directory / "config.yaml"
    try:
        meter = WidthMeter(config, model_file)
    except UserError as error:
        experiment.missing.append(Missing("widths over time", config, 3, str(error)))
        return []
    figures = []
    for example in tqdm(shown[:WIDTH_FIGURES], desc="widths", unit="mixture"):
        mixture, rate = read_audio(signals.mixture[example.utt], example.fs)
        paths = [scp[example.utt] for scp in signals.references if example.utt in scp]
        references = [read_audio(path, rate)[0] for path in paths]
        figures.append(width_figure(example, meter(mixture, references, rate)))
    return figures


def _shown(
    experiment: Experiment, examples: dict[str, list[Example]], what: str
) -> tuple[Signals, list[Example], Path] | None:
    """Audio and examples of the first set that has some, and the model; None if there are none."""
    name, shown = next(((name, shown) for name, shown in examples.items() if shown), ("", []))
    if experiment.model_file is None or not shown:
        stage, needed = (
            (3, "a trained model")
            if experiment.model_file is None
            else (7, "mixtures (--data_dirs)")
        )
        experiment.missing.append(
            Missing(what, experiment.directory / "config.yaml", stage, f"needs {needed}")
        )
        return None
    signals = open_set(next(item for item in experiment.sets if item.name == name))
    assert signals is not None  # it has examples
    return signals, shown, experiment.model_file


def _has_gate(experiment: Experiment) -> bool:
    levels = experiment.separator_conf.get("levels")
    return levels is None or len(levels) > 1


def _has_experts(experiment: Experiment) -> bool:
    conf = experiment.separator_conf
    return "moe" in (conf.get("t_module", "moe"), conf.get("f_module", "moe"))


def _figure_input(signals: Signals, shown: list[Example], hop: int) -> FigureInput | None:
    """Of the mixtures to listen to, the one whose voices differ most in pitch."""
    found = []
    for example in shown:
        paths = [scp[example.utt] for scp in signals.references if example.utt in scp]
        if len(paths) >= 2:
            references = [read_audio(path, example.fs)[0] for path in paths]
            figure = three_parts(example.utt, references, example.fs, hop)
            if figure is not None:
                found.append(figure)
    longest = max((len(figure.signal) for figure in found), default=0)
    usable = [figure for figure in found if len(figure.signal) >= longest / 2]
    return max(usable, key=lambda figure: figure.pitch_ratio, default=None)
