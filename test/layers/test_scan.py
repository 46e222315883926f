"""Every back end of the selective scan against the definition in float64: values and gradients."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from instruction_sets import every_instruction_set
from scan_problems import needs_kernel, problem, run
from torch.utils._python_dispatch import TorchDispatchMode

from espnet2_sepx.layers.scan import (
    causal_conv_silu,
    compiled,
    ops,
    portable,
    reference,
    selective_scan,
)

SIZES = [  # sequences, steps, channels, states: not all multiples of block, chunk and vector
    (3, 1, 5, 4),
    (2, 7, 33, 16),
    (5, 8, 16, 8),
    (9, 9, 40, 3),
    (3, 122, 64, 16),
    (1, 494, 17, 4),
]
VALUES = 5e-7
GRADIENTS = 5e-6


@functools.cache
def solution(size, full, reverse):
    """Problem, output, last states, their upstream gradients and the gradients of the inputs."""
    inputs = problem(*size, full=full, reverse=reverse)
    leaves = inputs.with_tensors(
        tuple(None if t is None else t.clone().requires_grad_() for t in inputs.tensors())
    )
    y, last = reference.scan(leaves)
    upstream = torch.randn_like(y), torch.randn_like(last)
    torch.autograd.backward((y, last), upstream)
    grads = {
        name: tensor.grad
        for name, tensor in zip(inputs.TENSORS, leaves.tensors(), strict=True)
        if tensor is not None
    }
    return inputs, y.detach(), last.detach(), upstream, grads


def relative(found, expected) -> float:
    scale = expected.abs().max().clamp_min(1e-30)
    return ((found.double() - expected).abs().max() / scale).item()


FLOAT32 = [pytest.param("cpu", marks=needs_kernel), "torch", "reference"]


@pytest.mark.parametrize("backend", FLOAT32)
@pytest.mark.parametrize("full", [True, False], ids=["full", "bare"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32_agrees_with_float64(size, reverse, full, backend) -> None:
    inputs, y, last, upstream, grads = solution(size, full, reverse)
    leaves = inputs.to(torch.float32).with_tensors(
        tuple(None if t is None else t.float().requires_grad_() for t in inputs.tensors())
    )
    with torch.no_grad():
        plain = run(leaves, backend)
    found = run(leaves, backend)
    for inference, training in zip(plain, found, strict=True):
        assert torch.equal(inference, training)
    assert relative(found[0], y) < VALUES
    assert relative(found[1], last) < VALUES
    torch.autograd.backward(found, tuple(g.float() for g in upstream))
    for name, tensor in zip(leaves.TENSORS, leaves.tensors(), strict=True):
        if tensor is not None and grads[name].abs().max() > 0:
            assert relative(tensor.grad, grads[name]) < GRADIENTS, name


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_portable_in_float64_is_exact(size, reverse) -> None:
    for full in (True, False):
        inputs, y, last, upstream, grads = solution(size, full, reverse)
        found, found_last = portable.forward(inputs)
        assert relative(found, y) < 1e-13
        assert relative(found_last, last) < 1e-13
        ours = portable.backward(inputs, *upstream)
        for name, expected in grads.items():
            assert relative(getattr(ours, name), expected) < 1e-12 or expected.abs().max() == 0


def test_portable_passes_gradcheck() -> None:
    inputs = problem(2, 9, 3, 2)
    tensors = tuple(t.requires_grad_() for t in inputs.tensors())

    def scan(*tensors):
        return run(inputs.with_tensors(tensors), "torch")

    assert torch.autograd.gradcheck(scan, tensors)


@needs_kernel
@every_instruction_set
def test_every_instruction_set_of_this_processor(isa) -> None:
    kernel = compiled.Kernel(isa)
    for size in ((2, 37, 33, 16), (3, 18, 20, 5)):
        for reverse in (False, True):
            inputs, y, last, upstream, grads = solution(size, True, reverse)
            single = inputs.to(torch.float32)
            found, found_last = kernel.forward(single)
            assert relative(found, y) < VALUES
            assert relative(found_last, last) < VALUES
            ours = kernel.backward(single, *(g.float() for g in upstream))
            for name, expected in grads.items():
                assert relative(getattr(ours, name), expected) < GRADIENTS, name


@needs_kernel
def test_threads_change_nothing_but_sums() -> None:
    inputs, _, _, upstream, _ = solution((9, 9, 40, 3), True, False)
    single = inputs.to(torch.float32)
    kernel = ops.kernel()
    one = kernel.forward(single), kernel.backward(single, *(g.float() for g in upstream))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        three = kernel.forward(single), kernel.backward(single, *(g.float() for g in upstream))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one[0], three[0], strict=True))
    for name in inputs.TENSORS:
        torch.testing.assert_close(getattr(one[1], name), getattr(three[1], name))


def test_slices_of_wider_tensors_are_read_in_place() -> None:
    inputs = problem(3, 20, 16, 4).to(torch.float32)
    wide = torch.cat((inputs.u, inputs.z), -1)
    packed = torch.cat((inputs.dt, inputs.B, inputs.C), -1)
    dt, B, C = packed.split([16, 4, 4], -1)
    u, z = wide.chunk(2, -1)
    views = inputs.with_tensors((u, dt, inputs.A, B, C, inputs.D, z, inputs.dt_bias, inputs.h0))
    for backend in ("auto", "torch"):
        torch.testing.assert_close(run(views, backend), run(inputs, backend), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", FLOAT32)
def test_a_run_in_two_parts_is_one_run(backend) -> None:
    inputs = problem(2, 30, 9, 4).to(torch.float32)
    whole, last = run(inputs, backend)
    state, parts = inputs.h0, []
    for part in (slice(0, 1), slice(1, 13), slice(13, 30)):
        names = {name: getattr(inputs, name) for name in inputs.TENSORS}
        names |= {name: names[name][:, part] for name in ("u", "dt", "B", "C", "z")}
        names["h0"] = state
        y, state = selective_scan(**names, dt_softplus=True, return_state=True, backend=backend)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-6)


def test_batching_does_not_change_a_bit() -> None:
    inputs = problem(21, 10, 16, 4).to(torch.float32)
    for backend in ("auto", "torch"):
        whole = run(inputs, backend)[0]
        names = {name: getattr(inputs, name) for name in inputs.TENSORS}
        for item in (0, 8, 20):
            one = {
                name: t if name in ("A", "D", "dt_bias") else t[item : item + 1]
                for name, t in names.items()
            }
            y = selective_scan(**one, dt_softplus=True, backend=backend)
            assert torch.equal(y[0], whole[item])


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_autocast_does_not_reach_the_scan(backend) -> None:
    inputs = problem(2, 20, 8, 4).to(torch.float32)
    exact = run(inputs, backend)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(inputs, backend)[0], exact)
        half = run(inputs.with_tensors((inputs.u.bfloat16(), *inputs.tensors()[1:])), backend)
    assert half[0].dtype == torch.bfloat16
    assert half[1].dtype == torch.float32


# ---- memory ------------------------------------------------------------------------------------


class _Largest(TorchDispatchMode):
    """Number of elements in the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_kernel), "torch"])
def test_no_tensor_of_batch_length_width_and_state(backend) -> None:
    batch, length, width, state = 64, 128, 64, 16
    inputs = problem(batch, length, width, state).to(torch.float32)
    implementation = ops.kernel() if backend == "cpu" else portable
    with _Largest() as seen, torch.no_grad():
        y, _ = implementation.forward(inputs)
        implementation.backward(inputs, torch.ones_like(y), None)
    chunk = portable.BUFFER_NUMBERS["cpu"]
    assert seen.elements <= max(chunk, batch * length * width)
    assert seen.elements < batch * length * width * state / 4


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_kernel), "torch"])
def test_training_keeps_the_inputs_only(backend) -> None:
    inputs = problem(4, 40, 16, 8).to(torch.float32)
    leaves = inputs.with_tensors(tuple(t.requires_grad_() for t in inputs.tensors()))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run(leaves, backend)
    given = {t.data_ptr() for t in leaves.tensors()}
    assert {t.data_ptr() for t in kept} <= given


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_peak_memory_is_the_output_and_64_mb(backend) -> None:
    code = f"""
import resource, torch
from espnet2_sepx.layers.scan import selective_scan
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
x, n = torch.randn(501, 250, 512), torch.randn(501, 250, 16)
d = x.abs()
A = -torch.rand(16, 512)
with torch.no_grad():
    selective_scan(x[:1], d[:1], A, n[:1], n[:1], backend={backend!r})
    before = peak()
    y = selective_scan(x, d, A, n, n, backend={backend!r})
print(peak() - before - y.numel() * 4 / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64


# ---- convolution -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [pytest.param("auto", marks=needs_kernel), "torch"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [(1, 5, 4), (3, 16, 4), (70, 33, 4), (9, 8, 3)], ids=str)
def test_convolution(size, reverse, backend) -> None:
    length, width, taps = size
    x = torch.randn(2, length, width, dtype=torch.float64)
    weight, bias = torch.randn(taps, width).double(), torch.randn(width).double()
    run_order = x.flip(1) if reverse else x
    leaves = [t.clone().requires_grad_() for t in (run_order, weight, bias)]
    padded = torch.nn.functional.pad(leaves[0].transpose(1, 2), (taps - 1, 0))
    y = torch.nn.functional.conv1d(padded, leaves[1].t()[:, None], leaves[2], groups=width)
    y = torch.nn.functional.silu(y).transpose(1, 2)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    expected = y.flip(1) if reverse else y
    grads = [leaf.grad for leaf in leaves]
    grads[0] = grads[0].flip(1) if reverse else grads[0]
    single = [t.float().requires_grad_() for t in (x, weight, bias)]
    found = causal_conv_silu(*single, reverse=reverse, backend=backend)
    with torch.no_grad():
        plain = causal_conv_silu(*single, reverse=reverse, backend=backend)
        if not reverse and length > taps:
            begin = single[0][:, :taps]
            rest = causal_conv_silu(
                single[0][:, taps:], *single[1:], before=begin[:, 1:], backend=backend
            )
            torch.testing.assert_close(rest, plain[:, taps:], rtol=1e-5, atol=1e-6)
    assert torch.equal(found, plain)
    assert relative(found, expected) < VALUES
    found.backward((upstream.flip(1) if reverse else upstream).float())
    for tensor, grad in zip(single, grads, strict=True):
        assert relative(tensor.grad, grad) < GRADIENTS


def test_operators_tell_tracers_their_shapes() -> None:
    tests = ("test_schema", "test_faketensor")
    scan, x = torch.ops.espnet2_sepx, torch.randn(2, 5, 4)
    inputs = problem(2, 5, 4, 3).to(torch.float32)
    for backend in ("auto", "torch"):
        conv = (x, torch.randn(4, 4), torch.randn(4), None, False, backend)
        torch.library.opcheck(scan.causal_conv_silu.default, conv, test_utils=tests)
    arguments = (*inputs.tensors(), True, False, "torch")
    torch.library.opcheck(scan.selective_scan.default, arguments, test_utils=tests)
