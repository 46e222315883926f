"""The compiled mixture against the portable one in float64, and when it is used."""

from __future__ import annotations

import copy

import plain
import pytest
import torch
from instruction_sets import every_instruction_set

from espnet2_sepx.layers import moe_compiled
from espnet2_sepx.layers.moe import GATES, MoEFeedForward
from espnet2_sepx.layers.native import build
from espnet2_sepx.layers.norms import Padding
from espnet2_sepx.profiling.macs import count_macs

needs_kernel = pytest.mark.skipif(moe_compiled.probe()[0] is None, reason=moe_compiled.probe()[1])


def problem(cells=(2, 40, 9), dim=8, **options) -> tuple[MoEFeedForward, torch.Tensor]:
    torch.manual_seed(0)
    options = {"axis": "time", "num_experts": 5, "expansion": 2, **options}
    moe = plain.as_if_trained(MoEFeedForward(dim, **options))
    return moe, torch.randn(*cells, dim)


def assert_agrees(moe: MoEFeedForward, x: torch.Tensor, padding: Padding | None = None) -> None:
    """Outputs, statistics and all gradients, with those of the portable form in float64; then the
    form in place."""
    assert moe_compiled.fits(x.flatten(0, 2), moe.router, moe.top_k)
    exact = copy.deepcopy(moe).double()
    upstream, norm = torch.randn_like(x), torch.nn.LayerNorm(x.shape[-1])
    found = []
    for layer, dtype in ((moe, torch.float32), (exact, torch.float64)):
        tokens = x.to(dtype, copy=True).requires_grad_()
        y, stats = layer(tokens, padding)
        loss = (y * upstream).sum() + 3.0 * stats.balance
        grads = torch.autograd.grad(loss, (tokens, *layer.parameters()))
        assert not stats.share.requires_grad
        assert not stats.prob.requires_grad
        report = (stats.balance, stats.share, stats.top1_prob, stats.prob, stats.expert)
        target = x.to(dtype, copy=True)
        with torch.no_grad():
            in_place = layer.add_to(target, norm.to(dtype), 0.5, padding)
        found.append((y, *grads, *report, target, in_place.balance, in_place.share))
    for ours, reference in zip(*found, strict=True):
        limit = 1e-5 * reference.abs().max().item() + 1e-6
        assert (ours - reference).abs().max().item() < limit


@needs_kernel
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    ("cells", "dim", "experts"),
    [
        ((2, 40, 9), 8, 5),
        ((1, 1, 1), 8, 5),
        ((1, 301, 80), 32, 12),  # the paper's
        ((1, 50, 20), 30, 3),
        ((2, 11, 3), 44, 16),
        ((1, 40, 7), 17, 40),
        ((3, 2, 4), 2, 1),
    ],
)
def test_agrees_with_the_portable_form(cells, dim, experts, gate) -> None:
    assert_agrees(*problem(cells, dim, num_experts=experts, gate=gate))


@needs_kernel
@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_balance_rows_with_and_without_padding(axis, scope) -> None:
    moe, x = problem((3, 20, 7), axis=axis, balance_scope=scope)
    assert_agrees(moe, x)
    assert_agrees(moe, x, Padding.from_lengths(torch.tensor([20, 3, 11]), 20))


@needs_kernel
@every_instruction_set
def test_every_instruction_set_of_this_processor(isa, monkeypatch) -> None:
    kernel = moe_compiled.Kernel(isa)
    monkeypatch.setattr(moe_compiled, "probe", lambda: (kernel, isa))
    for experts in (3, 12, 33):
        assert_agrees(*problem((1, 43, 5), 10, num_experts=experts))


@needs_kernel
@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_threads_change_nothing(axis) -> None:
    moe, x = problem((2, 301, 11), 12, axis=axis)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert_agrees(moe, x, Padding.from_lengths(torch.tensor([301, 200]), 301))
    finally:
        torch.set_num_threads(threads)


@needs_kernel
def test_tokens_need_not_be_adjacent() -> None:
    moe, x = problem((1, 30, 4), 16)
    assert torch.equal(moe(x[..., ::2].repeat_interleave(2, -1))[0], moe(_strided(x))[0])


def _strided(x: torch.Tensor) -> torch.Tensor:
    """The even channels of ``x``, each twice, as a view with gaps."""
    wide = torch.randn(*x.shape[:-1], 40)
    wide[..., 5 : 5 + x.shape[-1]] = x[..., ::2].repeat_interleave(2, -1)
    return wide[..., 5 : 5 + x.shape[-1]]


@needs_kernel
def test_a_broken_token_spoils_itself_alone() -> None:
    moe, x = problem()
    spoilt = x.clone()
    spoilt[0, 3, 2] = torch.nan
    ours, clean = moe(spoilt)[0], moe(x)[0]
    assert ours[0, 3, 2].isnan().all()
    ours[0, 3, 2] = clean[0, 3, 2]
    torch.testing.assert_close(ours, clean)


@needs_kernel
def test_other_tensors_and_the_variable_take_the_portable_form(monkeypatch) -> None:
    moe, x = problem()
    tokens = x.flatten(0, 2)
    assert moe_compiled.fits(tokens, moe.router, 1)
    assert not moe_compiled.fits(tokens, moe.router, 2)
    assert not moe_compiled.fits(tokens.double(), moe.router.double(), 1)
    assert not moe_compiled.fits(tokens.bfloat16(), moe.router, 1)
    assert not moe_compiled.fits(tokens[:0], moe.router, 1)
    assert not moe_compiled.fits(tokens, torch.zeros(moe_compiled.MAX_EXPERTS + 1, 8), 1)
    y = moe(x)[0]
    monkeypatch.setenv(moe_compiled.VARIABLE, "0")
    assert not moe_compiled.fits(tokens, moe.router, 1)
    assert moe_compiled.explain() == (False, "switched off by ESPNET2_SEPX_MOE_KERNEL=0")
    torch.testing.assert_close(moe(x)[0], y)


@pytest.fixture
def fresh_probe():
    moe_compiled.probe.cache_clear()
    yield
    moe_compiled.probe.cache_clear()


def test_without_a_library_the_portable_form_is_used(fresh_probe, monkeypatch) -> None:
    def load(isa):
        raise build.Unavailable("no C compiler")

    monkeypatch.setattr(build, "load", load)
    assert moe_compiled.explain() == (False, "no C compiler")
    moe, x = problem()
    torch.testing.assert_close(moe(x)[0].double(), moe.double()(x.double())[0])


@needs_kernel
def test_a_kernel_that_computes_something_else_is_not_used(fresh_probe, monkeypatch) -> None:
    route = moe_compiled._route
    monkeypatch.setattr(moe_compiled, "_route", lambda *args: [2 * t for t in route(*args)])
    kernel, reason = moe_compiled.probe()
    assert kernel is None
    assert "gives other values" in reason


@needs_kernel
@pytest.mark.parametrize("in_place", [True, False])
def test_macs_are_those_of_the_portable_form(in_place, monkeypatch) -> None:
    """Of every kind, and none is hidden."""
    moe, x = problem((1, 64, 5))
    norm, target = torch.nn.LayerNorm(8), x.clone()
    counts = []
    for switch in "10":
        monkeypatch.setenv(moe_compiled.VARIABLE, switch)
        run = (lambda: moe.add_to(target, norm, 0.1, None)) if in_place else (lambda: moe(x))
        counts.append(count_macs(moe, run))
    ours, portable = counts
    assert (ours.total, ours.uncounted) == (portable.total, portable.uncounted)
    assert ours.by_operator()["espnet2_sepx.route_to_best"].weights == 64 * 5 * 8 * 5
