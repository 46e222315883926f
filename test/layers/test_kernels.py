"""Fast products equal the default ones, and say why when they are not used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from espnet2_sepx.layers import kernels


@pytest.fixture
def no_onednn(monkeypatch):
    monkeypatch.setattr(kernels, "onednn_linear", lambda: (None, "switched off here"))


@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_values_and_gradients(with_bias) -> None:
    x = torch.randn(3, 7, 5, requires_grad=True)
    weight = torch.randn(9, 5, requires_grad=True)
    bias = torch.randn(9, requires_grad=True) if with_bias else None
    inputs = tuple(t for t in (x, weight, bias) if t is not None)
    upstream = torch.randn(3, 7, 9)
    ours, reference = kernels.linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(ours, reference)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(reference, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_weight_gradient_whichever_is_narrower() -> None:
    for outputs, inputs in ((3, 8), (8, 3)):
        grad, x = torch.randn(20, outputs), torch.randn(20, inputs)
        torch.testing.assert_close(
            kernels.weight_gradient(grad, x), grad.t() @ x, rtol=1e-4, atol=1e-5
        )


def test_row_step() -> None:
    assert kernels.row_step(torch.zeros(1)) in (1, kernels.ROW_STEP)
    assert kernels.row_step(torch.zeros(1, dtype=torch.double)) == 1


def test_without_onednn_the_default_is_used(no_onednn) -> None:
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    assert torch.equal(kernels.matmul_t(x, weight), F.linear(x, weight))
    assert kernels.row_step(x) == 1
    assert torch.equal(kernels.linear(x, weight), F.linear(x, weight))


def test_the_trial_leaves_random_numbers_alone() -> None:
    kernels.onednn_linear.cache_clear()
    state = torch.get_rng_state()
    kernels.onednn_linear()
    assert torch.equal(torch.get_rng_state(), state)


def test_switched_off_by_the_variable_and_layers_import_nothing_of_espnet() -> None:
    code = (
        "import sys, espnet2_sepx.layers.conformer, espnet2_sepx.layers.band_split;"
        "from espnet2_sepx.layers.kernels import onednn_linear;"
        "print(onednn_linear(), [m for m in sys.modules if m.split('.')[0] == 'espnet2'])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ESPNET2_SEPX_ONEDNN": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.strip() == "(None, 'switched off by ESPNET2_SEPX_ONEDNN=0') []"
