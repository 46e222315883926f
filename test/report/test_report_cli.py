"""The command as a user runs it, and the page as a browser sees it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import fake_experiment as fake
import pytest

from espnet2_sepx.bin.report import main
from espnet2_sepx.errors import UserError
from espnet2_sepx.report import build

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


class Page(HTMLParser):
    """All tags with their attributes, and the text of the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(autouse=True)
def fake_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "Router", fake.FakeRouter)


def run(exp: Path, *more: object) -> Page:
    main(["--exp", str(exp), *map(str, more)])
    return Page(exp / "report.html")


def test_whole_report(experiment: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    exp, data = experiment
    page = run(exp, "--data_dirs", data, "--examples", 3, "--fs", fake.FS)
    shown, _ = capsys.readouterr()
    assert re.search(r"SI-SNRi dB.*\ntest +6 +\d", re.sub("-{9,}\n", "", shown))
    assert f"report: {exp.resolve() / 'report.html'}" in shown

    assert not (exp / "report.html").read_text().count("Missing parts")
    assert len(page.attributes("audio")) == 3 * 5
    assert len(page.attributes("article")) == 3
    assert "Computing time of a run" in page.text
    for title in (
        "Typical",
        "dead: 4",
        "band_split",
        "Experts alive",
        "higher voice",
        "123,456",
        "one speaker",
    ):
        assert title.lower() in page.text.lower()
    assert (exp / "report.html").stat().st_size < 8e6

    results = json.loads((exp / "RESULTS.json").read_text())
    assert results["scores"]["test"]["metrics"]["si_snri"]["ci_low"] is not None
    assert results["cost"]["parameters"]["total"] == 123456
    assert results["training"] | {"best": 0} == results["training"] | {"best": 0, "epochs": 12}
    assert results["training"]["criterion"] == "valid.si_snr_loss"
    assert results["data"]["test"]["mixtures"] == 6
    assert results["missing"] == []
    assert str(exp) not in (exp / "RESULTS.json").read_text()
    assert "| test | 6 " in (exp / "RESULTS.md").read_text()


def test_page_needs_nothing_from_outside(experiment: tuple[Path, Path]) -> None:
    exp, data = experiment
    page = run(exp, "--data_dirs", data, "--examples", 1)
    for tag, attributes in page.tags:
        for name in ("src", "href", "poster", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value[:40]}>"
    source = (exp / "report.html").read_text()
    assert not re.search(r"url\((?!data:)", source)
    assert not re.search(r"@import|https?://|fetch\(|XMLHttpRequest", source)


def test_page_is_accessible(experiment: tuple[Path, Path]) -> None:
    exp, data = experiment
    page = run(exp, "--data_dirs", data, "--examples", 1)
    assert page.attributes("html")[0]["lang"] == "en"
    assert all(attributes.get("alt") for attributes in page.attributes("img"))
    assert all(attributes.get("aria-label") for attributes in page.attributes("audio"))
    assert len(page.attributes("caption")) == len(page.attributes("table"))
    charts = [item for item in page.attributes("svg") if item.get("role") == "img"]
    assert charts
    assert all(item.get("aria-label") for item in charts)
    identifiers = [item["id"] for _, item in page.tags if "id" in item]
    assert len(set(identifiers)) == len(identifiers)
    targets = {item["href"][1:] for item in page.attributes("a") if item.get("href")}
    assert targets <= set(identifiers)


def test_embedded_audio_is_flac(experiment: tuple[Path, Path]) -> None:
    exp, data = experiment
    page = run(exp, "--data_dirs", data, "--examples", 1)
    for attributes in page.attributes("audio"):
        kind, _, content = str(attributes["src"]).partition(",")
        assert kind == "data:audio/flac;base64"
        assert base64.b64decode(content).startswith(b"fLaC")


@pytest.mark.parametrize(
    ("removed", "said", "stage"),
    [
        ("score_test", "scores of set 'test'", 5),
        ("separated_test", "separated signals of 'test'", 4),
        ("profile", "cost", 6),
        ("checkpoint.pth", "training curves", 3),
        ("valid.si_snr_loss.best.pth", "trained model", 3),
        ("config.yaml", "configuration", 3),
    ],
)
def test_missing_parts_are_named(
    experiment: tuple[Path, Path], removed: str, said: str, stage: int
) -> None:
    exp, data = experiment
    path = exp / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = run(exp, "--data_dirs", data, "--examples", 1)
    assert said in page.text
    assert f"./run.sh --stage {stage} --stop_stage {stage}" in page.text
    missing = json.loads((exp / "RESULTS.json").read_text())["missing"]
    assert said in str(missing)
    assert f"--stage {stage} " in (exp / "RESULTS.md").read_text()


def test_empty_experiment(tmp_path: Path) -> None:
    page = run(tmp_path)
    for said in ("configuration", "trained model", "training curves", "cost"):
        assert said in page.text


def test_same_experiment_same_files(experiment: tuple[Path, Path]) -> None:
    exp, data = experiment
    files = ("report.html", "RESULTS.json", "RESULTS.md")
    run(exp, "--data_dirs", data, "--examples", 1)
    first = [(exp / name).read_bytes() for name in files]
    run(exp, "--data_dirs", data, "--examples", 1)
    assert first == [(exp / name).read_bytes() for name in files]


def test_dense_system_has_no_expert_section(experiment: tuple[Path, Path]) -> None:
    exp, data = experiment
    config = (exp / "config.yaml").read_text().replace("_module: moe", "_module: conformer")
    (exp / "config.yaml").write_text(config)
    page = run(exp, "--data_dirs", data, "--examples", 1)
    assert not [item for item in page.attributes("section") if item.get("id") == "routing"]
    assert not json.loads((exp / "RESULTS.json").read_text())["missing"]


def test_text_from_files_is_escaped(experiment: tuple[Path, Path]) -> None:
    exp, data = experiment
    (exp / "config.yaml").write_text("separator: <script>alert(1)</script>\n")
    run(exp, "--data_dirs", data, "--examples", 0)
    assert "<script>alert(1)" not in (exp / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exp", "/no/such/folder"], "no such folder"),
        (["--exp", "{exp}", "--data_dirs", "{exp}"], "no wav.scp"),
        (["--exp", "{exp}", "--model_file", "x.pth"], "no such file"),
        (["--exp", "{exp}", "--examples", "-1"], "expected 0 or more"),
        (["--exp", "{exp}", "--data_dirs", "{data}", "--fs", "16000"], "expected 16000 Hz"),
    ],
)
def test_wrong_input(experiment: tuple[Path, Path], arguments: list[str], message: str) -> None:
    exp, data = experiment
    with pytest.raises(UserError, match=message):
        main([part.format(exp=exp, data=data) for part in arguments])
    assert not (exp / "report.html").exists()


def test_broken_json_is_named(experiment: tuple[Path, Path]) -> None:
    exp, data = experiment
    (exp / "profile" / "cost.json").write_text("{")
    with pytest.raises(UserError, match=r"cost\.json: not valid JSON"):
        main(["--exp", str(exp), "--data_dirs", str(data)])


# Counts players that can tell their duration, then whether a second player stops the first.
PROBE = """<script>
window.addEventListener("load", async () => {
  const all = [...document.querySelectorAll("audio")];
  const ready = (audio) => new Promise((done) => {
    if (audio.readyState > 0) return done(audio.duration);
    audio.addEventListener("loadedmetadata", () => done(audio.duration));
    audio.addEventListener("error", () => done(-1));
    audio.load();
  });
  const seconds = await Promise.all(all.map(ready));
  let stopped = 0;
  all[0].pause = () => { stopped += 1; };
  all[1].dispatchEvent(new Event("play"));
  document.getElementById("block").value = "2";
  document.getElementById("block").dispatchEvent(new Event("change"));
  const panels = [...document.querySelectorAll("[data-panel]")].filter((item) => !item.hidden);
  const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  document.title = JSON.stringify({
    seconds, stopped, wide, panels: panels.map((item) => item.dataset.panel),
    native: all.filter((item) => item.offsetParent).length,
  });
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("width", [480, 1280])
def test_in_a_browser(experiment: tuple[Path, Path], tmp_path: Path, width: int) -> None:
    exp, data = experiment
    run(exp, "--data_dirs", data, "--examples", 1)
    probed = tmp_path / "probed.html"
    probed.write_text((exp / "report.html").read_text().replace("</body>", PROBE + "</body>"))
    options = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run "
        f"--virtual-time-budget=4000 --window-size={width},900 --dump-dom"
    ).split()
    folder = f"--user-data-dir={tmp_path / 'profile'}"
    dump = subprocess.run(
        [str(BROWSER), *options, folder, probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    title = re.search(r"<title>(\{.*?\})</title>", dump)
    assert title, "the page's script did not finish"
    seen = json.loads(title.group(1).replace("&quot;", '"'))
    assert seen["seconds"] == pytest.approx([1.5] * 5, abs=0.01)
    assert seen["stopped"] == 1
    assert seen["panels"] == ["2-1"]
    assert seen["native"] == 0
    assert not seen["wide"]
