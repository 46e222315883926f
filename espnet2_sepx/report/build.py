"""The two parts of a report that need audio: examples to listen to, and routing of the model."""

from __future__ import annotations

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

ROUTED_SEPARATORS = ("tf_moe",)


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
    name, shown = next(((name, shown) for name, shown in examples.items() if shown), ("", []))
    if experiment.model_file is None or not shown:
        what = "a trained model" if experiment.model_file is None else "mixtures (--data_dirs)"
        experiment.missing.append(
            Missing("routing of the experts", config, 3 if what[0] == "a" else 7, f"needs {what}")
        )
        return None
    signals = open_set(next(item for item in experiment.sets if item.name == name))
    assert signals is not None  # it has examples
    try:
        router = Router(config, experiment.model_file)
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
