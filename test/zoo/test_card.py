"""The card states what the files say."""

from __future__ import annotations

import json

import pytest
import yaml

from espnet2_sepx.errors import UserError
from espnet2_sepx.zoo.card import Facts, check_scores_belong_to, read_cost, read_summaries, render


def facts(trained, **changes):
    values = {
        "name": "tiny",
        "config": {"separator": "rnn", "separator_conf": {"num_spk": 2, "layer": 1}},
        "summaries": read_summaries(trained.exp),
        "cost": read_cost(trained.exp),
        "licence": "CC-BY-4.0",
        "data_licence": "noise, CC0",
        "meta": {"espnet": "202511", "torch": "2.11.0", "python": "3.11.7 (main)"},
    }
    return Facts(**{**values, **changes})


def header_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_has_everything(trained):
    card = render(facts(trained), ["me/tiny"])
    assert header_of(card)["license"] == "cc-by-4.0"
    for piece in (
        "| test | 10 | 5.25 [5.00, 5.50] (1 missing) | 5.25 [5.00, 5.50] (1 missing) |",
        "SI-SNR: means removed",
        "| Parameters | 12,345 |",
        "| Real-time factor, 1 CPU thread(s) | 0.0123 |",
        "on Test CPU",
        "* Model: CC-BY-4.0",
        "* Training data: noise, CC0",
        'SeparateSpeech.from_pretrained("me/tiny")',
        '--model_tag "me/tiny" --fs 8000',
        "ESPnet 202511, PyTorch 2.11.0, Python 3.11.7.",
        "layer: 1",
    ):
        assert piece in card


def test_the_python_lines_compile(trained):
    card = render(facts(trained), ["me/tiny"])
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")


def test_our_package_is_named_only_where_it_is_needed(trained):
    assert "espnet2_sepx" not in render(facts(trained), ["t"])
    assert "espnet2_sepx" in render(facts(trained, config={"separator": "tf_moe"}), ["t"])


def test_an_unusual_licence_keeps_its_name(trained):
    header = header_of(render(facts(trained, licence="LDC User Agreement"), ["t"]))
    assert (header["license"], header["license_name"]) == ("other", "ldc-user-agreement")


def test_no_cost_is_said(trained):
    assert "Not measured." in render(facts(trained, cost=None), ["t"])


def test_without_scores_there_is_no_card(experiment):
    path = experiment.exp / "score_test" / "summary.json"
    summary = json.loads(path.read_text())
    for entry in summary["metrics"].values():
        entry["mean"] = None
    path.write_text(json.dumps(summary))
    with pytest.raises(UserError, match="no scores; a model is not published without"):
        read_summaries(experiment.exp)


def test_results_of_other_weights_are_refused(experiment):
    weights = experiment.exp / "3epoch.pth"
    results = experiment.exp / "RESULTS.json"
    check_scores_belong_to(experiment.exp, weights)
    results.write_text(json.dumps({"model": {"file": "x.pth", "sha256": "0" * 64}}))
    with pytest.raises(UserError, match="results are those of other weights"):
        check_scores_belong_to(experiment.exp, weights)
