"""Which back end of the selective scan is used, and what is said of those that cannot be."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from scan_problems import needs_kernel, problem, run

from espnet2_sepx.layers.native import build
from espnet2_sepx.layers.scan import (
    backends,
    compiled,
    explain,
    mamba_package,
    reference,
    selective_scan,
)
from espnet2_sepx.layers.scan.inputs import ScanInputs


@pytest.fixture
def fresh_probes(monkeypatch, tmp_path):
    """No cached answer; builds go to an empty folder."""
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    clear = (compiled.probe.cache_clear, mamba_package.probe.cache_clear, build.load.cache_clear)
    for forget in clear:
        forget()
    yield tmp_path
    for forget in clear:
        forget()


def test_without_a_compiler_the_portable_scan_is_used(fresh_probes, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    u = torch.zeros(1, 2, 3)
    assert backends.choose("auto", u, 4) == "torch"
    assert ("cpu", False, "no C compiler (cc, gcc or clang) is on the PATH") in explain()
    with pytest.raises(ValueError, match="'cpu' cannot be used: no C compiler"):
        backends.choose("cpu", u, 4)
    assert run(problem(1, 2, 3, 4).to(torch.float32), "auto")[0].isfinite().all()


@needs_kernel
def test_a_built_library_needs_no_compiler(fresh_probes, monkeypatch) -> None:
    assert compiled.probe()[0] is not None
    assert [path.suffix for path in fresh_probes.iterdir()] == [".so"]
    compiled.probe.cache_clear()
    build.load.cache_clear()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert compiled.probe()[0] is not None


def test_a_compiler_that_fails_is_a_reason(fresh_probes, monkeypatch) -> None:
    monkeypatch.setenv("CC", "false")
    kernel, reason = compiled.probe()
    assert kernel is None
    assert reason.startswith("false cannot build the kernel")
    assert list(fresh_probes.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_reason(fresh_probes, monkeypatch) -> None:
    blocked = fresh_probes / "file"
    blocked.touch()
    monkeypatch.setenv(build.CACHE_VARIABLE, str(blocked / "folder"))
    kernel, reason = compiled.probe()
    assert kernel is None
    assert f"set {build.CACHE_VARIABLE} to a folder of yours" in reason


@needs_kernel
def test_a_kernel_that_computes_something_else_is_not_used(fresh_probes, monkeypatch) -> None:
    monkeypatch.delenv(build.CACHE_VARIABLE)  # what is built already will do
    forward = compiled.Kernel.forward
    monkeypatch.setattr(
        compiled.Kernel, "forward", lambda *args: tuple(2 * t for t in forward(*args))
    )
    kernel, reason = compiled.probe()
    assert kernel is None
    assert "gives other values" in reason


def test_names_from_argument_and_environment(monkeypatch) -> None:
    u = torch.zeros(1, 2, 3)
    monkeypatch.setenv(backends.VARIABLE, "torch")
    assert backends.choose("auto", u, 4) == "torch"
    assert backends.choose("reference", u, 4) == "reference"
    monkeypatch.setenv(backends.VARIABLE, "gpu")
    with pytest.raises(ValueError, match="auto or one of"):
        backends.choose("auto", u, 4)
    monkeypatch.delenv(backends.VARIABLE)
    with pytest.raises(ValueError, match="float64"):
        backends.choose("cpu", u.double(), 4)
    with pytest.raises(ValueError, match="tensors are on cpu"):
        backends.choose("mamba_ssm", u, 4)
    assert backends.choose("auto", u.double(), 4) == "torch"
    assert backends.choose("auto", u, 1000) == "torch"


def test_wrong_shapes_are_named() -> None:
    inputs = problem(2, 5, 4, 3)
    for name in ("dt", "B", "C", "D", "z", "dt_bias", "h0"):
        names = dict(zip(inputs.TENSORS, inputs.tensors(), strict=True))
        names[name] = names[name][..., :-1]
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            selective_scan(**names)
    with pytest.raises(ValueError, match="at least one step"):
        selective_scan(inputs.u[:, :0], inputs.dt[:, :0], inputs.A, inputs.B, inputs.C)


# ---- mamba-ssm ---------------------------------------------------------------------------------


def test_mamba_ssm_absent(fresh_probes, monkeypatch) -> None:
    for name in (mamba_package.PACKAGE, mamba_package.EXTENSION):
        monkeypatch.setitem(sys.modules, name, None)
    function, reason = mamba_package.probe()
    assert function is None
    assert reason == "mamba-ssm is not installed (pip install mamba-ssm)"
    assert {name: why for name, _, why in explain()}["mamba_ssm"] in (
        reason,
        "torch sees no CUDA device",
    )


BROKEN = {  # files of an installation -> what is said about it
    "selective_scan_cuda.py: raise ImportError('libcudart.so.11: cannot open shared object')": (
        "mamba-ssm's CUDA extension is broken: ImportError: libcudart.so.11"
    ),
    "selective_scan_cuda.py: import no_cuda": (
        "mamba-ssm's CUDA extension is broken: ModuleNotFoundError: No module named 'no_cuda'"
    ),
    "mamba_ssm.py: ": "mamba-ssm is installed without its CUDA extension",
    "selective_scan_cuda.py: ": "mamba-ssm is broken: ModuleNotFoundError: No module named",
}


@pytest.mark.parametrize(("file", "words"), BROKEN.items())
def test_a_broken_mamba_ssm_is_reported_not_fatal(
    fresh_probes, tmp_path, monkeypatch, file, words
) -> None:
    for name in [name for name in sys.modules if name.startswith(mamba_package.PACKAGE)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, mamba_package.EXTENSION, raising=False)
    name, content = file.split(": ", 1)
    (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    function, reason = mamba_package.probe()
    assert function is None
    assert reason.startswith(words)
    name, usable, why = explain()[0]
    assert (name, usable) == ("mamba_ssm", False)
    assert words in why


def test_mamba_ssm_gets_its_layout(fresh_probes, monkeypatch) -> None:
    """The package's function stands in: the definition, in the package's layout."""

    def selective_scan_fn(u, dt, A, B, C, D, z, bias, softplus, return_last_state):
        assert return_last_state
        assert A.shape == (u.shape[1], B.shape[1])
        y, last = reference.scan(
            ScanInputs(
                *(t.transpose(1, 2) for t in (u, dt)),
                A.t(),
                *(t.transpose(1, 2) for t in (B, C)),
                D,
                None if z is None else z.transpose(1, 2),
                bias,
                dt_softplus=softplus,
            )
        )
        return y.transpose(1, 2), last.transpose(1, 2)

    interface = types.ModuleType(mamba_package.INTERFACE)
    interface.selective_scan_fn = selective_scan_fn
    monkeypatch.setitem(sys.modules, mamba_package.EXTENSION, types.ModuleType("extension"))
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, mamba_package.INTERFACE, interface)
    for reverse in (False, True):
        inputs = problem(2, 6, 5, 3, reverse=reverse)
        inputs = inputs.with_tensors((*inputs.tensors()[:-1], None))
        for found, expected in zip(mamba_package.scan(inputs), reference.scan(inputs), strict=True):
            torch.testing.assert_close(found, expected)
