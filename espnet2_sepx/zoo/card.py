"""The model card: what a model is worth, what it costs, what it may be used for, and how.

Everything in it is read from the files of an experiment; nothing is typed by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet2_sepx.errors import UserError
from espnet2_sepx.registration import TABLE
from espnet2_sepx.report.collect import file_digest
from espnet2_sepx.report.results import METRICS, format_interval, format_score, quantity

# Usual identifiers of Hugging Face; any other licence is published as "other" with its name.
KNOWN_LICENCES = (
    "apache-2.0",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-4.0",
    "gpl-3.0",
    "mit",
)


@dataclass(frozen=True)
class Facts:
    """What the card is written from.

    Attributes:
        name: of the model.
        config: training configuration.
        summaries: ``summary.json`` of each scored set.
        cost: ``cost.json``, None if it was not measured.
        licence: of the model.
        data_licence: what the training data are, and under which licence.
        meta: ``meta.yaml`` of the pack.
    """

    name: str
    config: dict[str, Any]
    summaries: list[dict[str, Any]]
    cost: dict[str, Any] | None
    licence: str
    data_licence: str
    meta: dict[str, Any]

    @property
    def sample_rate(self) -> int:
        return int(self.summaries[0]["fs"])

    @property
    def needs_our_package(self) -> bool:
        """Whether stock ESPnet alone does not know the separator."""
        return self.config.get("separator") in {row.name for row in TABLE}


def read_summaries(exp: str | Path) -> list[dict[str, Any]]:
    """Scores of all sets of an experiment; an experiment without any is refused."""
    paths = sorted(Path(exp).glob("score_*/summary.json"))
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    scored = [
        summary
        for summary in summaries
        if any(entry["mean"] is not None for entry in summary["metrics"].values())
    ]
    if not scored:
        raise UserError(
            f"{Path(exp) / 'score_*' / 'summary.json'}: no scores; a model is not published "
            "without them, run stages 4 and 5 first"
        )
    return scored


def read_cost(exp: str | Path) -> dict[str, Any] | None:
    """Cost of the model, None if stage 6 was not run."""
    path = Path(exp) / "profile" / "cost.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def check_scores_belong_to(exp: str | Path, weights: str | Path) -> None:
    """Refuse weights other than those the results were computed with, where these say which."""
    path = Path(exp) / "RESULTS.json"
    if not path.is_file():
        return
    model = json.loads(path.read_text(encoding="utf-8")).get("model") or {}
    if model.get("sha256") not in (None, file_digest(Path(weights))):
        raise UserError(
            f"{path}: the results are those of other weights than the packed ones; "
            "run stages 4 to 8 again"
        )


def render(facts: Facts, tags: list[str]) -> str:
    """The card as Markdown with Hugging Face's header.

    Args:
        facts: what to write.
        tags: how ``ModelDownloader`` finds the model (repository name, address, path), best first.
    """
    separator = facts.config.get("separator", "unknown")
    speakers = (facts.config.get("separator_conf") or {}).get("num_spk", 2)
    lines = [
        "---",
        yaml.safe_dump(_header(facts.licence), sort_keys=False).rstrip(),
        "---",
        "",
        f"# {facts.name}",
        "",
        f"Separates {speakers} overlapping voices at {facts.sample_rate} Hz. ESPnet2 `enh` model "
        f"with the separator `{separator}`.",
        *("", "## Scores", "", *_scores(facts.summaries)),
        *("", "## Cost", "", *_cost(facts.cost)),
        *("", "## Data and licence", ""),
        f"* Model: {facts.licence}",
        f"* Training data: {facts.data_licence}",
        *("", "## Use", "", *_use(facts, tags)),
        *("", "## Made with", ""),
        ", ".join(
            f"{name} {str(facts.meta[key]).split()[0]}"
            for name, key in (("ESPnet", "espnet"), ("PyTorch", "torch"), ("Python", "python"))
            if key in facts.meta
        )
        + ".",
        *("", "<details><summary>Configuration of the model</summary>", "", "```yaml"),
        yaml.safe_dump(_model_part(facts.config), sort_keys=False).rstrip(),
        *("```", "", "</details>"),
    ]
    return "\n".join(lines) + "\n"


def _header(licence: str) -> dict[str, Any]:
    identifier = licence.strip().lower().replace(" ", "-")
    header: dict[str, Any] = {"license": identifier}
    if identifier not in KNOWN_LICENCES:
        header = {"license": "other", "license_name": identifier}
    return {
        **header,
        "library_name": "espnet",
        "pipeline_tag": "audio-to-audio",
        "tags": ["espnet", "audio", "audio-to-audio", "speech-separation"],
    }


def _scores(summaries: list[dict[str, Any]]) -> list[str]:
    metrics = [name for name in METRICS if any(name in item["metrics"] for item in summaries)]
    titles = [" ".join(filter(None, METRICS[name][:2])) for name in metrics]
    lines = [
        f"| set | mixtures | {' | '.join(titles)} |",
        "|---|---:|" + "---:|" * len(titles),
    ]
    for summary in summaries:
        cells = []
        for name in metrics:
            entry = summary["metrics"].get(name, {})
            cell = f"{format_score(name, entry.get('mean'))} {format_interval(name, entry)}"
            missing = entry.get("missing")
            cells.append(cell + (f" ({missing} missing)" if missing else ""))
        lines.append(f"| {summary['set']} | {summary['count']} | {' | '.join(cells)} |")
    conventions = summaries[0].get("conventions", {})
    rules = [
        f"{METRICS[m][0]}: {conventions[m]}" for m in ("si_snr", "sdr", "pesq") if m in metrics
    ]
    return [*lines, "", f"Means, in brackets 95 % bootstrap intervals. {'; '.join(rules)}."]


def _cost(cost: dict[str, Any] | None) -> list[str]:
    if cost is None:
        return ["Not measured."]
    macs, rtf = cost["macs_per_second"], cost["rtf"]
    rows = [
        ("Parameters", f"{cost['parameters']['total']:,}"),
        ("MAC per second of audio, all", quantity(macs["all"])),
        ("MAC per second of audio, layers with weights", quantity(macs["weights"])),
        (f"Real-time factor, {rtf['threads']} CPU thread(s)", f"{rtf['median']:.3g}"),
        ("Peak memory", f"{cost['memory_mb']['peak']:.0f} MB"),
    ]
    if macs.get("executed") is not None:
        rows.insert(2, ("MAC per second of audio, executed", quantity(macs["executed"])))
    processor = cost["environment"].get("accelerator") or cost["environment"].get("processor")
    return [
        "| | |",
        "|---|---:|",
        *(f"| {title} | {value} |" for title, value in rows),
        "",
        f"Measured with {cost['seconds']:g} s of audio at {cost['fs']} Hz on {processor}.",
    ]


def _use(facts: Facts, tags: list[str]) -> list[str]:
    packages = "espnet espnet_model_zoo" + (" espnet2_sepx" if facts.needs_our_package else "")
    tag = tags[0]
    lines = [
        f"Needs the Python packages {packages.replace(' ', ', ')}."
        + (
            " `espnet2_sepx` makes the separator known to ESPnet, no import needed."
            if facts.needs_our_package
            else ""
        ),
        *("", "```python", "import soundfile"),
        "from espnet2.bin.enh_inference import SeparateSpeech",
        "",
        f'separate = SeparateSpeech.from_pretrained("{tag}")',
        f'mixture, rate = soundfile.read("mixture.wav")  # mono, {facts.sample_rate} Hz',
        "voices = separate(mixture[None], fs=rate)  # one array (1, samples) per voice",
        *("```", "", "With ESPnet's command:", "", "```sh"),
        'echo "mixture mixture.wav" > wav.scp',
        f'python -m espnet2.bin.enh_inference --model_tag "{tag}" --fs {facts.sample_rate} \\',
        "    --data_path_and_name_and_type wav.scp,speech_mix,sound --output_dir separated",
        "```",
    ]
    if len(tags) > 1:
        lines += ["", "Also at: " + ", ".join(f"`{other}`" for other in tags[1:]) + "."]
    return lines


def _model_part(config: dict[str, Any]) -> dict[str, Any]:
    keys = (
        part + suffix for part in ("encoder", "separator", "decoder") for suffix in ("", "_conf")
    )
    return {key: config[key] for key in keys if key in config}
