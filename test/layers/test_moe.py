"""Mixture of experts: dispatch against the naive reference, gates, balance loss, records."""

from __future__ import annotations

import plain
import pytest
import torch
import torch.nn.functional as F

from espnet2_sepx.layers.feed_forward import FeedForward
from espnet2_sepx.layers.moe import GATES, MoEFeedForward
from espnet2_sepx.layers.norms import Padding
from espnet2_sepx.layers.routing import Assignment


def layer(num_experts: int = 5, **options) -> MoEFeedForward:
    options = {"axis": "time", **options}
    return plain.as_if_trained(MoEFeedForward(8, num_experts=num_experts, **options).double())


def cells(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 8, dtype=torch.double)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k"),
    [(40, 5, 1), (40, 5, 2), (40, 5, 3), (1, 5, 1), (3, 12, 1), (3, 12, 2), (700, 2, 1)],
)
def test_sorted_dispatch_equals_naive(tokens, num_experts, top_k, gate) -> None:
    """Values and all gradients; experts without tokens, one token, more experts than tokens."""
    moe = layer(num_experts, top_k=top_k, gate=gate)
    x = torch.randn(tokens, 8, dtype=torch.double, requires_grad=True)
    inputs = (x, *moe.parameters())
    ours, stats = moe(x.view(1, tokens, 1, 8))
    reference, chosen, prob = plain.mixture(moe, x)
    torch.testing.assert_close(ours.view(tokens, 8), reference)
    assert torch.equal(stats.expert.long(), chosen)
    torch.testing.assert_close(stats.prob, prob.gather(1, chosen))
    upstream = torch.randn_like(reference)
    frequency = F.one_hot(chosen, num_experts).sum((0, 1)) * (num_experts / (top_k * tokens))
    ours = (ours.view(tokens, 8) * upstream).sum() + stats.balance
    reference = (reference * upstream).sum() + (frequency * prob.mean(0)).sum()
    for a, b in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(reference, inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_padding_of_runs_changes_nothing(monkeypatch) -> None:
    """float32, where runs of slots may be rounded up for oneDNN, against float64."""
    moe = layer(5).float()
    x = torch.randn(1, 50, 3, 8, requires_grad=True)
    results = []
    for step in (1, 16):
        monkeypatch.setattr("espnet2_sepx.layers.moe.row_step", lambda x, step=step: step)
        y, stats = moe(x)
        grads = torch.autograd.grad(y.square().sum() + stats.balance, (x, *moe.parameters()))
        results.append((y, *grads))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradcheck_of_the_layer() -> None:
    moe = plain.as_if_trained(MoEFeedForward(2, axis="time", num_experts=3, expansion=2).double())
    x = torch.randn(1, 3, 2, 2, dtype=torch.double, requires_grad=True)

    def function(x, *_):
        y, stats = moe(x)
        return y, stats.balance

    assert torch.autograd.gradcheck(function, (x, *moe.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_of_equally_good_experts_is_chosen(dtype) -> None:
    moe = layer(4).to(dtype)
    with torch.no_grad():
        moe.router[3] = moe.router[1]
        moe.router[2] = moe.router[0]
    _, stats = moe(cells(1, 40, 3).to(dtype))
    assert stats.expert.unique().tolist() == [0, 1]
    with torch.no_grad():
        moe.router.zero_()
    _, stats = moe(cells(1, 40, 3).to(dtype))
    assert stats.expert.count_nonzero() == 0
    assert stats.top1_prob.item() == pytest.approx(0.25)


@pytest.mark.parametrize("step", [1, 8])
def test_dispatch_lists_every_choice_once_by_expert(step) -> None:
    expert = torch.stack([torch.randperm(6)[:2] for _ in range(30)])
    dispatch = Assignment.of(expert, torch.zeros(6, 30)).dispatch(step)
    for token in range(30):
        for choice in range(2):
            row = dispatch.row[token, choice]
            assert dispatch.token[row] == token
            run = dispatch.runs[expert[token, choice]]
            assert run.start <= row < run.stop
    assert all((run.stop - run.start) % step == 0 for run in dispatch.runs)
    assert len(dispatch.row.unique()) == 60
    gate = torch.rand(30, 2)
    spread = dispatch.spread(gate)
    assert torch.equal(spread[dispatch.row, 0], gate)
    assert spread.count_nonzero() == 60


@pytest.mark.parametrize("gate", GATES)
def test_one_expert_is_the_dense_layer(gate) -> None:
    moe = layer(1, gate=gate)
    dense = FeedForward(8, 4).double()
    with torch.no_grad():
        for linear, weight, bias in (
            (dense.linear1, moe.weight1, moe.bias1),
            (dense.linear2, moe.weight2, moe.bias2),
        ):
            linear.weight.copy_(weight[0])
            linear.bias.copy_(bias[0])
    x = cells(2, 5, 3)
    y, stats = moe(x)
    torch.testing.assert_close(y, dense(x))
    assert stats.balance.item() == pytest.approx(1.0)
    tokens = x.flatten(0, 2)
    naive = plain.mixture(moe, tokens)[0]
    assert torch.equal(naive, dense.linear2(F.silu(dense.linear1(tokens))))


def test_all_experts_chosen_is_the_softmax_mixture() -> None:
    moe, x = layer(4, top_k=4), cells(1, 6, 2)
    tokens = x.flatten(0, 2)
    prob = torch.softmax(tokens @ moe.router.t(), -1)
    hidden = torch.einsum("nd,ehd->neh", tokens, moe.weight1) + moe.bias1
    every = torch.einsum("neh,edh->ned", F.silu(hidden), moe.weight2) + moe.bias2
    torch.testing.assert_close(moe(x)[0].flatten(0, 2), (prob[:, :, None] * every).sum(1))


@pytest.mark.parametrize("top_k", [1, 2])
def test_permuting_experts_permutes_the_record_only(top_k) -> None:
    moe, x = layer(5, top_k=top_k), cells(2, 6, 3)
    y, stats = moe(x)
    order = torch.tensor([3, 0, 4, 1, 2])  # new expert i is old expert order[i]
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(parameter[order])
    permuted, permuted_stats = moe(x)
    torch.testing.assert_close(permuted, y)
    assert torch.equal(order[permuted_stats.expert.long()], stats.expert.long())
    torch.testing.assert_close(permuted_stats.share, stats.share[order])


def test_router_gradient_from_the_task() -> None:
    norms = {}
    for gate in GATES:
        torch.manual_seed(3)
        moe = layer(4, gate=gate)
        moe(cells(2, 8, 3))[0].square().sum().backward()
        norms[gate] = 0.0 if moe.router.grad is None else moe.router.grad.norm().item()
    assert norms["prob"] > 1e-3
    assert norms["straight_through"] > 1e-3
    assert norms["normalised"] < 1e-10


def test_straight_through_forward_is_the_normalised_one() -> None:
    x = cells(1, 5, 3)
    torch.manual_seed(1)
    first = layer(4, gate="straight_through")(x)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(first, layer(4, gate="normalised")(x)[0])


@pytest.mark.parametrize("in_place_top_k", [1, 2])
@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_in_place_inference_equals_forward(axis, in_place_top_k) -> None:
    moe = layer(4, axis=axis, top_k=in_place_top_k).float()
    norm = torch.nn.LayerNorm(8)
    x = cells(2, 20, 9).float()
    padding = Padding.from_lengths(torch.tensor([20, 13]), 20)
    with torch.no_grad():
        y, stats = moe(norm(x), padding)
        ours = x.clone()
        in_place = moe.add_to(ours, norm, 0.5, padding)
    torch.testing.assert_close(ours, x + 0.5 * y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(in_place.balance, stats.balance)
    torch.testing.assert_close(in_place.share, stats.share)


def reference_balance(moe: MoEFeedForward, rows: list[torch.Tensor]) -> float:
    """l = sum_i f_i P_i per row (n, N), averaged, by loops."""
    losses = []
    for row in rows:
        prob = torch.softmax(row @ moe.router.t(), -1)
        chosen = prob.topk(moe.top_k, -1).indices
        loss = 0.0
        for expert in range(prob.shape[1]):
            share = (chosen == expert).sum().item() / (moe.top_k * len(row))
            loss += share * prob.shape[1] * prob[:, expert].mean().item()
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_balance_counts_valid_tokens_of_each_row(axis, scope, top_k) -> None:
    moe = layer(4, axis=axis, balance_scope=scope, top_k=top_k)
    x, lengths = cells(2, 7, 3), [7, 4]
    valid = [x[item, :length] for item, length in enumerate(lengths)]
    if scope == "batch":
        rows = [torch.cat([v.flatten(0, 1) for v in valid])]
    elif axis == "time":
        rows = [v[:, band] for v in valid for band in range(3)]
    else:
        rows = [frame for v in valid for frame in v]
    padding = Padding.from_lengths(torch.tensor(lengths), 7)
    stats = moe(x, padding)[1]
    assert stats.balance.item() == pytest.approx(reference_balance(moe, rows), rel=1e-9)
    assert stats.share.sum().item() == pytest.approx(1.0)
    whole = moe(x)[1]
    assert whole.balance.item() != stats.balance.item()


def test_balance_is_1_when_even_and_the_number_of_experts_when_collapsed() -> None:
    moe = MoEFeedForward(4, axis="time", num_experts=4, balance_scope="batch").double()
    x = 100.0 * torch.eye(4, dtype=torch.double).view(1, 4, 1, 4)
    with torch.no_grad():
        moe.router.copy_(torch.eye(4))
    even = moe(x)[1]
    assert even.balance.item() == pytest.approx(1.0)
    assert even.share.tolist() == [0.25] * 4
    with torch.no_grad():
        moe.router.zero_()
        moe.router[2] = 1.0
    collapsed = moe(x.abs() + 1.0)[1]
    assert collapsed.balance.item() == pytest.approx(4.0)
    assert collapsed.share.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_balance_gradient_goes_through_the_mean_probability_alone() -> None:
    moe, x = layer(4, balance_scope="batch"), cells(1, 9, 2)
    stats = moe(x)[1]
    (ours,) = torch.autograd.grad(stats.balance, moe.router)
    prob = torch.softmax(x.flatten(0, 2) @ moe.router.t(), -1)
    (expected,) = torch.autograd.grad((4 * stats.share * prob.mean(0)).sum(), moe.router)
    torch.testing.assert_close(ours, expected)


def test_experts_start_alike_and_as_linear_layers_do() -> None:
    moe = MoEFeedForward(64, axis="time", num_experts=3)
    assert moe.weight1.abs().max().item() == pytest.approx(64**-0.5, rel=0.01)
    assert moe.weight2.abs().max().item() == pytest.approx(256**-0.5, rel=0.01)
    assert moe.weight1.std((1, 2)).tolist() == pytest.approx([64**-0.5 / 3**0.5] * 3, rel=0.05)
    x = torch.randn(1, 20, 3, 64)
    y, stats = moe(x)
    assert (stats.share > 0).all()
    dense = MoEFeedForward(64, axis="time", num_experts=1)
    for ours, theirs in zip(dense._weights(), moe._weights(), strict=True):
        ours.data.copy_(theirs[:1])
    torch.testing.assert_close(y / stats.prob.view(1, 20, 3, 1), dense(x)[0])


def test_router_runs_in_float32_under_autocast() -> None:
    moe = layer(4).float()
    x = cells(1, 6, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, stats = moe(x)
    assert y.dtype == torch.bfloat16
    assert stats.balance.dtype == stats.prob.dtype == torch.float32
    assert torch.equal(stats.expert, moe(x)[1].expert)
