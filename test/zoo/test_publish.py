"""Publishing to a folder and to a hub, used from there as anybody would."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_double import serve_hub

from espnet2_sepx.bin import publish as command
from espnet2_sepx.errors import UserError
from espnet2_sepx.zoo import hub as adapter
from espnet2_sepx.zoo.publish import Request, archive_name, make_plan, publish
from espnet2_sepx.zoo.table import read_table

LICENCES = ["--licence", "CC-BY-4.0", "--data_licence", "generated speech, no licence"]


def arguments(experiment, *more):
    return ["--pack", str(experiment.pack), "--exp", str(experiment.exp), *map(str, more)]


def tree(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


@pytest.fixture
def web_server(tmp_path):
    """Any static web server, here Python's, on ``tmp_path / "zoo"``."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    folder = tmp_path / "zoo"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def model_downloader(table, cache):
    pytest.importorskip("espnet_model_zoo")
    import pandas
    from espnet_model_zoo.downloader import ModelDownloader

    downloader = ModelDownloader(cache)
    downloader.data_frame = pandas.read_csv(table, dtype=str)
    return downloader


# --- a zoo folder --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_the_model_zoo_downloads_by_table_and_by_address(trained, web_server, tmp_path, capsys):
    folder, url = web_server
    more = ["--name", "me/tiny", "--corpus", "mini", "--zoo_dir", folder, "--zoo_url", url]
    command.main(arguments(trained, *LICENCES, *more))
    digest = hashlib.sha256(trained.pack.read_bytes()).hexdigest()
    archive = archive_name("me/tiny", digest)
    assert tree(folder) == sorted(["me/tiny/README.md", archive, f"{archive}.sha256", "table.csv"])
    (row,) = read_table(folder / "table.csv")
    assert (row["url"], row["fs"], row["sha256"]) == (f"{url}/{archive}", "8000", digest)
    assert row["url"] in (folder / "me/tiny/README.md").read_text()
    assert f"Published: {row['url']}" in capsys.readouterr().out

    zoo = model_downloader(f"{url}/table.csv", tmp_path / "cache")
    assert zoo.query("name", corpus="mini") == ["me/tiny"]
    for found in (
        zoo.download_and_unpack("me/tiny", quiet=True),
        zoo.download_and_unpack(row["url"], quiet=True),
    ):
        assert Path(found["model_file"]).read_bytes() == (trained.exp / "3epoch.pth").read_bytes()
        assert Path(found["train_config"]).is_file()


@pytest.mark.filterwarnings("ignore")
def test_without_an_address_the_table_has_file_paths(trained, tmp_path):
    plan = make_plan(
        Request(str(trained.pack), str(trained.exp), "tiny", "MIT", "none", str(tmp_path / "zoo"))
    )
    (address,) = publish(plan)
    assert Path(address).is_file()
    zoo = model_downloader(tmp_path / "zoo" / "table.csv", tmp_path / "cache")
    assert Path(zoo.download_and_unpack("tiny")["model_file"]).is_file()


def test_checksums_are_those_of_sha256sum(trained, tmp_path):
    command.main(arguments(trained, *LICENCES, "--zoo_dir", tmp_path))
    (checksum,) = tmp_path.glob("tiny/*.sha256")
    done = subprocess.run(["sha256sum", "-c", checksum.name], cwd=checksum.parent)
    assert done.returncode == 0


def test_publishing_again_changes_nothing_and_a_new_version_takes_the_row(experiment, tmp_path):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / "table.csv").write_text("name,url\nother,https://host/other.zip\n")
    publish_arguments = arguments(experiment, *LICENCES, "--zoo_dir", zoo)
    command.main(publish_arguments)
    before = {name: (zoo / name).read_bytes() for name in tree(zoo)}
    command.main(publish_arguments)
    assert {name: (zoo / name).read_bytes() for name in tree(zoo)} == before

    (experiment.exp / "RESULTS.md").write_text("# another run\n")
    experiment.repack("tiny.zip")
    command.main(publish_arguments)
    rows = read_table(zoo / "table.csv")
    assert [row["name"] for row in rows] == ["other", "tiny"]
    assert Path(rows[1]["url"]).read_bytes() == experiment.pack.read_bytes()
    assert len(list(zoo.glob("tiny/*.zip"))) == 2  # whoever has the old address keeps a model


def test_publishers_at_the_same_time_lose_no_row(trained, tmp_path):
    threads = [
        threading.Thread(
            target=lambda name=name: publish(
                make_plan(
                    Request(str(trained.pack), str(trained.exp), name, "MIT", "none", str(tmp_path))
                )
            )
        )
        for name in "abcdef"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["name"] for row in read_table(tmp_path / "table.csv")) == list("abcdef")


# --- Hugging Face --------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with serve_hub() as double:
        monkeypatch.setattr(constants, "ENDPOINT", double.url)  # as HF_ENDPOINT does at the start
        yield double


def test_the_hub_gets_the_unpacked_files_and_the_zoo_class_reads_them(trained, hub, tmp_path):
    hub.files["exp/tiny/1epoch.pth"] = b"weights of an older version"
    hub.files["notes.txt"] = b"somebody's"
    command.main(arguments(trained, *LICENCES, "--hf_repo", "me/tiny"))
    files = ["README.md", "exp/tiny/3epoch.pth", "exp/tiny/RESULTS.md", "exp/tiny/config.yaml"]
    assert hub.commits == [([*files, "meta.yaml"], ["exp/tiny/1epoch.pth"])]
    assert b'from_pretrained("me/tiny")' in hub.files["README.md"]
    assert "notes.txt" in hub.files

    pytest.importorskip("espnet_model_zoo")
    script = (  # of its own process, which reads the hub's address at the start
        "import json, sys\n"
        "from espnet_model_zoo.downloader import ModelDownloader\n"
        "print(json.dumps(ModelDownloader(sys.argv[1]).download_and_unpack('me/tiny')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "cache")],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["model_file"]).read_bytes() == (trained.exp / "3epoch.pth").read_bytes()
    assert Path(found["train_config"]).is_file()


def test_a_refusal_of_the_hub_is_one_line_without_the_token(trained, hub):
    hub.refuse = True
    with pytest.raises(UserError, match=r"--hf_repo me/tiny: .*401.*hf auth login") as caught:
        command.main(arguments(trained, *LICENCES, "--hf_repo", "me/tiny"))
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)


def test_an_unreachable_hub_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(UserError, match="check the name and the network"):
        adapter.upload(tmp_path, "me/tiny", "message", endpoint="http://127.0.0.1:1")


# --- before anything is written ------------------------------------------------------------------


def test_a_dry_run_shows_everything_and_touches_nothing(trained, hub, tmp_path, capsys):
    zoo = tmp_path / "zoo"
    before = tree(trained.root)
    command.main(
        arguments(trained, *LICENCES, "--zoo_dir", zoo, "--hf_repo", "me/tiny", "--dry_run", "true")
    )
    output = capsys.readouterr()
    assert f"{trained.pack.stat().st_size:,} bytes  {zoo}/tiny/tiny." in output.out
    assert "Hugging Face repository me/tiny:" in output.out
    for name in ("meta.yaml", "exp/tiny/3epoch.pth", "README.md"):
        assert f"bytes  {name}\n" in output.out
    assert "| test | 10 | 5.25 [5.00, 5.50] (1 missing) |" in output.out
    assert "names 1 paths of this machine, such as /home/somebody/wav.scp" in output.err
    assert not zoo.exists()
    assert hub.requests == []
    assert tree(trained.root) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_licence", "x", "--zoo_dir", "zoo"], "--licence: missing"),
        (["--licence", " ", "--data_licence", "x", "--zoo_dir", "zoo"], "--licence: missing"),
        (["--licence", "MIT", "--zoo_dir", "zoo"], "--data_licence: missing"),
        (LICENCES, "nowhere to publish to"),
        ([*LICENCES, "--zoo_dir", "zoo", "--zoo_url", "host/zoo"], "expected http://"),
        ([*LICENCES, "--zoo_dir", "zoo", "--name", "../up"], "expected letters"),
        ([*LICENCES, "--hf_repo", "tiny"], "expected USER/NAME"),
    ],
)
def test_incomplete_requests_are_refused(trained, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.main(arguments(trained, *options))
    assert tree(tmp_path) == []


def test_no_scores_no_publication(experiment, tmp_path):
    (experiment.exp / "score_test" / "summary.json").unlink()
    with pytest.raises(UserError, match="no scores"):
        command.main(arguments(experiment, *LICENCES, "--zoo_dir", tmp_path / "zoo"))
    assert not (tmp_path / "zoo").exists()


def test_a_folder_that_cannot_be_written_is_told(trained, tmp_path):
    (tmp_path / "zoo").write_text("a file")
    with pytest.raises(UserError, match="choose a folder you may write to"):
        command.main(arguments(trained, *LICENCES, "--zoo_dir", tmp_path / "zoo"))


@pytest.mark.slow
def test_stock_espnet_separates_with_a_published_model(trained, web_server, tmp_path):
    """What the card promises: ``from_pretrained`` with the address, in a fresh process."""
    folder, url = web_server
    command.main(arguments(trained, *LICENCES, "--zoo_dir", folder, "--zoo_url", url))
    (row,) = read_table(folder / "table.csv")
    script = (
        "import sys, espnet_model_zoo.downloader as zoo\n"
        "init = zoo.ModelDownloader.__init__\n"
        f"zoo.ModelDownloader.__init__ = lambda self: init(self, {str(tmp_path / 'cache')!r})\n"
        "import soundfile\n"
        "from espnet2.bin.enh_inference import SeparateSpeech\n"
        f"separate = SeparateSpeech.from_pretrained({row['url']!r})\n"
        f"mixture, rate = soundfile.read({str(trained.wav)!r})\n"
        "voices = separate(mixture[None], fs=rate)\n"
        "assert len(voices) == 2 and voices[0].shape == (1, 4000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_warnings_do_not_hide_in_the_command(trained, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        command.main(arguments(trained, *LICENCES, "--zoo_dir", tmp_path / "zoo"))
