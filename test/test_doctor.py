"""doctor: says what is wrong, how to mend it, and fails only where something is needed."""

import collections
import importlib.metadata
import json

import pytest

from espnet2_sepx import _hook
from espnet2_sepx.bin import doctor
from espnet2_sepx.registration import TABLE


@pytest.fixture
def installed(monkeypatch):
    """Version of every distribution that doctor asks for; a test may change some."""
    versions = collections.defaultdict(lambda: "1.0", numpy="2.3.5")
    monkeypatch.setattr(doctor, "installed_version", lambda name: versions[name])
    monkeypatch.setattr(_hook, "is_installed", lambda: True)
    monkeypatch.delenv(_hook.DISABLE_VARIABLE, raising=False)
    return versions


def findings(capsys, *options):
    status = doctor.main(["--json", *options])
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] == (status == 0)
    return status, {f"{f['section']}/{f['name']}": f for f in answer["findings"]}


def test_a_complete_installation_is_healthy(installed, capsys):
    status, found = findings(capsys)
    assert status == 0
    assert found["Packages/espnet"] == {
        "section": "Packages",
        "name": "espnet",
        "status": "ok",
        "detail": "1.0",
        "remedy": "",
    }
    assert found["Registration/start-up hook"]["status"] == "ok"
    assert "WAV, FLAC" in found["Machine/audio files"]["detail"]
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.endswith("Ready for training and separation.\n")


def test_a_missing_core_package_is_a_failure(installed, capsys):
    installed["torchaudio"] = None
    status, found = findings(capsys)
    assert status == 1
    assert found["Packages/torchaudio"]["status"] == "FAIL"
    assert found["Packages/torchaudio"]["remedy"].startswith("make venv")
    assert doctor.main([]) == 1
    assert "1 to mend (FAIL)" in capsys.readouterr().out


def test_a_missing_extra_is_a_note_with_the_command(installed, capsys):
    installed["pystoi"] = None
    status, found = findings(capsys)
    assert status == 0
    assert "missing: pystoi" in found["Extras/score"]["detail"]
    assert found["Extras/score"]["remedy"] == 'pip install "espnet2_sepx[score]"'
    assert found["Extras/pesq"]["remedy"] == ""


def test_a_source_tree_without_installation_is_a_failure(installed, capsys):
    installed["espnet2_sepx"] = None
    status, found = findings(capsys)
    assert status == 1
    assert found["Packages/espnet2_sepx"]["status"] == "FAIL"


@pytest.mark.parametrize(
    ("version", "warned"), [("2.3.5", False), ("2.4.0", True), ("2.10.1", True)]
)
def test_new_numpy_is_noted(installed, capsys, version, warned):
    installed["numpy"] = version
    status, found = findings(capsys)
    assert status == 0
    assert (found["Packages/numpy"]["status"] == "note") == warned


def test_a_missing_hook_is_a_failure_and_a_disabled_one_a_note(installed, capsys, monkeypatch):
    monkeypatch.setattr(_hook, "is_installed", lambda: False)
    assert findings(capsys)[1]["Registration/start-up hook"]["status"] == "FAIL"
    monkeypatch.setenv(_hook.DISABLE_VARIABLE, "1")
    status, found = findings(capsys)
    assert status == 0
    assert "ESPNET2_SEPX_DISABLE" in found["Registration/start-up hook"]["remedy"]


def test_a_kernel_that_is_not_used_says_why(installed, capsys, monkeypatch):
    from espnet2_sepx.layers import kernels, moe_compiled

    monkeypatch.setattr(kernels, "onednn_linear", lambda: (None, "switched off by X=0"))
    monkeypatch.setattr(moe_compiled, "probe", lambda: (None, "no C compiler"))
    status, found = findings(capsys)
    assert status == 0
    for name, reason in (
        ("oneDNN products", "switched off by X=0"),
        ("expert routing", "no C compiler"),
    ):
        assert found[f"Computation/{name}"]["status"] == "note"
        assert found[f"Computation/{name}"]["detail"] == f"not used: {reason}"


def test_the_scan_in_use_is_named_and_the_others_say_why_not(installed, capsys, monkeypatch):
    from espnet2_sepx.layers.scan import backends, compiled

    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(compiled, "probe", lambda: (None, "no C compiler"))
    _, found = findings(capsys)
    assert found["Computation/selective scan"]["status"] == "note"
    detail = found["Computation/selective scan"]["detail"]
    assert detail.startswith("torch (mamba_ssm: ")
    assert "cpu: no C compiler" in detail
    monkeypatch.setenv(backends.VARIABLE, "reference")
    _, found = findings(capsys)
    assert found["Computation/selective scan"]["detail"].startswith("reference, asked for by")


def test_names_that_espnet_lacks_are_told():
    present = {f"{row.choices}:{row.name}" for row in TABLE}
    assert doctor.names_finding("here", present).status == "ok"
    present.remove("separator_choices:tf_moe")
    finding = doctor.names_finding("here", present)
    assert (finding.status, finding.detail) == ("FAIL", "ESPnet lacks tf_moe")


@pytest.mark.slow
def test_full_asks_espnet_in_new_processes(installed, capsys):
    status, found = findings(capsys, "--full")
    assert status == 0
    assert found["Registration/fresh interpreter"]["status"] == "ok"
    assert found["Registration/spawned child"]["status"] == "ok"


def test_every_extra_is_explained():
    provided = importlib.metadata.metadata("espnet2_sepx").get_all("Provides-Extra")
    assert sorted(provided) == sorted(doctor.EXTRAS)
