"""Mamba blocks: names of mamba-ssm, directions, steps, precision."""

from __future__ import annotations

import math

import pytest
import torch

from espnet2_sepx.layers.mamba import MambaLayer, MambaMixer, RMSNorm


def layer(**options) -> MambaLayer:
    torch.manual_seed(0)
    return MambaLayer(12, **{"d_state": 4, "expand": 2, **options})


def test_names_and_shapes_are_those_of_mamba_ssm() -> None:
    shapes = {name: tuple(p.shape) for name, p in MambaMixer(128, expand=4).named_parameters()}
    assert shapes == {
        "A_log": (512, 16),
        "D": (512,),
        "in_proj.weight": (1024, 128),
        "conv1d.weight": (512, 1, 4),
        "conv1d.bias": (512,),
        "x_proj.weight": (40, 512),
        "dt_proj.weight": (512, 8),
        "dt_proj.bias": (512,),
        "out_proj.weight": (128, 512),
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == 232_960


def test_initial_values_are_mambas() -> None:
    mixer = MambaMixer(64, d_state=8)
    assert torch.allclose(mixer.A_log.exp(), torch.arange(1.0, 9.0).expand(128, 8))
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 0.1001
    assert steps.log().std() > 0.9  # log-uniform: log(100) / sqrt(12) = 1.33
    assert mixer.dt_proj.weight.abs().max() <= 4**-0.5


def test_swapped_directions_of_a_reversed_input_swap_the_halves_exactly() -> None:
    one, other, x = layer(), layer(), torch.randn(3, 11, 12)
    other.forward_blocks, other.backward_blocks = one.backward_blocks, one.forward_blocks
    with torch.no_grad():
        forward, backward = one(x).chunk(2, -1)
        swapped = other(x.flip(1)).flip(1)
    assert torch.equal(swapped, torch.cat((backward, forward), -1))


def test_directions_do_not_look_ahead() -> None:
    model, x = layer(num_layers=2).double(), torch.randn(1, 20, 12, dtype=torch.float64)
    changed = x.clone()
    changed[:, 12:] += 1
    with torch.no_grad():
        forward, backward = (model(changed) - model(x)).abs().split(12, -1)
    assert forward[:, :12].max() == 0
    assert forward[:, 12:].amax((0, 2)).min() > 0
    assert backward.amax((0, 2)).min() > 0


@pytest.mark.parametrize("layers", [1, 2])
def test_step_by_step_equals_the_sequence(layers) -> None:
    model = layer(bidirectional=False, num_layers=layers).eval()
    x = torch.randn(3, 200, 12)
    with torch.no_grad():
        whole, state, outputs = model(x), None, []
        for step in (*x[:, :150].split(1, 1), *x[:, 150:].split(7, 1)):
            y, state = model.forward_streaming(step, state)
            outputs.append(y)
    steps = torch.cat(outputs, 1)
    assert (steps - whole).abs().max() < 1e-6 * whole.abs().max()
    assert len(state) == layers
    assert state[0].taps.shape == (3, 3, 24)
    assert state[0].scan.shape == (3, 4, 24)


def test_two_directions_cannot_stream() -> None:
    with pytest.raises(ValueError, match="bidirectional=False"):
        layer().forward_streaming(torch.zeros(1, 1, 12), None)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_do_not_depend_on_the_backend(backend) -> None:
    x, grads = torch.randn(4, 30, 12), []
    for name in ("auto", backend):
        model = layer(backend=name)
        model(x).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=2e-4, atol=1e-7)


def test_scan_sees_float32_under_autocast(monkeypatch) -> None:
    from espnet2_sepx.layers.scan import ops

    seen = []
    original = ops.scan_forward
    monkeypatch.setattr(
        ops, "scan_forward", lambda inputs, name: seen.append(inputs) or original(inputs, name)
    )
    with torch.autocast("cpu", torch.bfloat16):
        layer()(torch.randn(2, 9, 12)).sum().backward()
    assert len(seen) == 2
    assert all(t is None or t.dtype == torch.float32 for s in seen for t in s.tensors())


def test_rms_norm() -> None:
    norm, x = RMSNorm(6), torch.randn(2, 6)
    torch.nn.init.normal_(norm.weight)
    expected = torch.nn.functional.rms_norm(x, (6,), norm.weight, 1e-5)
    torch.testing.assert_close(norm(x), expected)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
