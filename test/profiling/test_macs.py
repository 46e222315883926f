"""Which module the work belongs to, what derives from a parameter, and laws of the count."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from espnet2_sepx.profiling.macs import count_macs

T, D = 20, 8
X = torch.randn(T, D, generator=torch.Generator().manual_seed(0))


def count(module, *inputs):
    return count_macs(module, lambda: module(*inputs))


class Weighted(nn.Module):
    """``x`` times what ``derive`` makes of a (D, D) parameter and a (D,) buffer."""

    def __init__(self, derive):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(D))
        self.register_buffer("order", torch.arange(D).flip(0))
        self.derive = derive

    def forward(self, x):
        return x @ self.derive(self, x)


def into_zeros(m, x):
    whole = torch.zeros(D, D)
    whole[: D // 2].copy_(m.weight[: D // 2])
    whole[D // 2 :] = m.weight[D // 2 :]
    return whole


def overwritten(m, x):
    whole = m.weight.clone()
    whole[0] = x[0]
    return whole


WEIGHTS = {
    "itself": lambda m, x: m.weight,
    "view": lambda m, x: m.weight.t()[:, :4].unsqueeze(0).expand(1, D, 4)[0],
    "scaled by a constant": lambda m, x: m.weight * torch.tensor(0.5),
    "folded with a buffer": lambda m, x: m.weight * (m.order + 1e-5).rsqrt(),
    "joined": lambda m, x: torch.cat([m.weight, m.weight], 1),
    "padded": lambda m, x: F.pad(m.weight, (0, 3)),
    "rows rearranged by a buffer": lambda m, x: m.weight[m.order],
    "copied into zeros": into_zeros,
    "one of a stack": lambda m, x: m.weight.expand(3, D, D)[1],
}
NOT_WEIGHTS = {
    "data": lambda m, x: x[:D],
    "modulated by data": lambda m, x: m.weight * x.mean(),
    "rows of a table by position": lambda m, x: m.weight[torch.arange(D).clamp_max(3)],
    "rows of a table by data": lambda m, x: m.weight[x[:, 0].argsort()[:D].clamp_max(D - 1)],
    "partly overwritten by data": overwritten,
    "projected constant": lambda m, x: torch.ones(D, D) @ m.weight,
    "constant": lambda m, x: torch.eye(D),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_derived_from_a_parameter(name):
    module = Weighted(WEIGHTS[name])
    work = count(module, X).total
    assert work.weights == work.all == T * D * module.derive(module, X).shape[1]


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_not_derived_from_a_parameter(name):
    work = count(Weighted(NOT_WEIGHTS[name]), X).by_operator()["aten.mm"]
    projection = D**3 if name == "projected constant" else 0  # which is a layer, its result is not
    assert (work.weights, work.all) == (projection, T * D * D + projection)


def test_an_address_used_again_does_not_stay_a_weight():
    def run(m, x):
        for _ in range(50):
            m.weight.clone()  # freed at once
        return x.clone()[:D]

    assert count(Weighted(run), X).total.weights == 0


class Cached(nn.Module):
    """Folds its weights once; the cache falls with ``train()``."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(D))
        self.folded = None

    def forward(self, x):
        if self.folded is None:
            self.folded = self.weight @ self.weight
        return x @ self.folded

    def train(self, mode=True):
        self.folded = None
        return super().train(mode)


def test_what_is_computed_once_is_a_weight_and_free():
    module = Cached().eval()
    with torch.no_grad():
        module(X)
    work = count(module, X).total
    assert (work.weights, work.all) == (T * D * D, T * D * D)


class OtherMethod(nn.Module):
    def square(self, x):
        return x.mT @ x


class Branches(nn.Module):
    """Calls one child, one by another method than ``forward``, uses the weights of a third, has a
    parameter of its own."""

    def __init__(self):
        super().__init__()
        self.called = nn.Sequential(nn.Linear(D, D))
        self.used = nn.Linear(D, D)
        self.skipped = nn.Linear(D, D)
        self.other = OtherMethod()
        self.own = nn.Parameter(torch.eye(D))

    def forward(self, x):
        y = F.linear(self.called(x), self.used.weight) @ self.own
        return self.other.square(y)


def test_work_goes_to_the_module_that_does_it_or_owns_the_weights():
    work = count(Branches(), X).by_module()
    assert {path: item.all for path, item in work.items()} == {
        "called.0": T * D * D,
        "used": T * D * D,
        "own": T * D * D,
        "other": T * D * D,
    }
    assert work["other"].weights == 0


def test_counting_leaves_no_trace():
    module = Branches().train()
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError):
        count(module, X[:, :3])
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_linear_part_doubles_and_quadratic_part_quadruples():
    layer = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)
    short, long = (count(layer, torch.randn(1, length, D)).total for length in (30, 60))
    assert long.weights == 2 * short.weights
    assert long.all - long.weights == 4 * (short.all - short.weights)


def test_grouped_products():
    if not hasattr(torch, "_grouped_mm"):
        pytest.skip("this PyTorch has no grouped product")
    from espnet2_sepx.profiling.rules import PRODUCT_RULES

    [product] = PRODUCT_RULES["aten._grouped_mm"]((X, torch.zeros(3, D, 5)), {}, None)
    assert product.macs == T * D * 5
