"""Slimmable layers: the literal equations, the masked and the sparse form are one function."""

import plain_slimmable
import pytest
import torch

from espnet2_sepx.layers import slimmable_rows
from espnet2_sepx.layers.slimmable import (
    Gates,
    Ladder,
    SlimmableAttention,
    SlimmableFeedForward,
    SlimmableLayer,
    SlimmableStack,
    units,
)
from espnet2_sepx.layers.transformer import TransformerLayer

DIM, HEADS, FFN = 16, 4, 24
TWO, THREE = (0.25, 1.0), (0.25, 0.5, 1.0)


def ladder_of(widths):
    return Ladder.of_widths(widths, HEADS, FFN)


def nested(level, number):
    """Gates c_k of levels."""
    return (level[..., None] >= torch.arange(number)).double()


def shaken(module):
    """Biases and norms get values, too."""
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module.double()


def random_levels(shape, number):
    level = torch.randint(number, shape)
    level[0] = 0  # a row without a wide frame
    level[1] = number - 1
    level[2] = number - 1
    level[2, 3] = 0  # a single frame differs
    return level


@pytest.mark.parametrize("widths", [TWO, THREE])
def test_masked_form_is_the_literal_equations(widths):
    module, x = shaken(SlimmableLayer(DIM, HEADS, FFN)), torch.randn(6, 7, DIM).double()
    level = random_levels((6, 7), len(widths))
    gates = Gates(ladder_of(widths), nested(level, len(widths)))
    expected = plain_slimmable.layer(module, x, level, gates.ladder)
    assert (module(x, gates) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("widths", [(0.25,), TWO, THREE, (0.3, 0.35, 0.8)])
@pytest.mark.parametrize("across", [False, True])
def test_sparse_form_is_the_literal_equations(widths, across, monkeypatch):
    monkeypatch.setitem(slimmable_rows.PIECE_TOKENS, "cpu", 20)  # several pieces, two short tables
    monkeypatch.setattr(slimmable_rows, "TABLE_SCORES", 1)
    monkeypatch.setitem(slimmable_rows.FFN_NUMBERS, "cpu", 60)
    stack = shaken(SlimmableStack(2, DIM, HEADS, FFN))
    ladder = ladder_of(widths)
    level = random_levels((3, 5, 8), len(widths))
    chunks = (5, 3, 4)
    x, table = torch.randn(3, 5, 8, DIM).double(), torch.randn(8, DIM).double()
    pieces = slimmable_rows.plan_pieces(level, chunks, ladder, across, x.device)
    with torch.no_grad():
        y = torch.zeros_like(x)
        slimmable_rows.run(stack, x, table, pieces, across, y)
    for item, n in enumerate(chunks):
        part, lev = x[item, :n], level[item, :n]
        if across:
            part, lev = part.transpose(0, 1), lev.t()
        expected = plain_slimmable.stack(stack, part + table[: part.shape[1]], lev, ladder)
        expected = expected.transpose(0, 1) if across else expected
        assert (y[item, :n] - expected).abs().max() < 1e-12
        assert not y[item, n:].any()


def test_full_width_is_the_static_layer():
    static = shaken(TransformerLayer(DIM, HEADS, FFN))
    module = SlimmableLayer(DIM, HEADS, FFN).double()
    module.load_state_dict(static.state_dict())
    x = torch.randn(3, 5, DIM).double()
    assert (module(x, Gates(ladder_of([1.0]))) - static(x)).abs().max() < 1e-12


def test_a_narrow_layer_stores_only_its_share():
    half = SlimmableLayer(DIM, HEADS, FFN, max_width=0.5).double()
    whole = SlimmableLayer(DIM, HEADS, FFN).double()
    inner = DIM // 2
    with torch.no_grad():
        for name, parameter in half.named_parameters():
            full = whole.get_parameter(name)
            if name.startswith("attention.qkv"):
                parts = full.view(3, DIM, -1)[:, :inner].reshape(parameter.shape)
            else:
                parts = full[tuple(slice(size) for size in parameter.shape)]
            parameter.copy_(parts)
    x = torch.randn(2, 5, DIM).double()
    gates = Gates(ladder_of([0.5]))
    assert (half(x, gates) - whole(x, gates)).abs().max() < 1e-12


def test_a_frame_without_a_head_has_no_influence_through_it():
    attention = shaken(SlimmableAttention(DIM, HEADS, DIM // HEADS))
    attention.out.weight.data[:, : DIM // HEADS] = 0.0  # head 1 sees all frames, leave it out
    level = torch.tensor([[1, 0, 1, 1, 0]])
    gates = Gates(ladder_of(TWO), nested(level, 2))
    x = torch.randn(1, 5, DIM).double()
    changed = x.clone()
    changed[0, 1] += 1.0
    assert torch.equal(attention(changed, gates), attention(x, gates))
    changed[0, 0] += 1.0
    assert not torch.allclose(attention(changed, gates)[0, 2], attention(x, gates)[0, 2])


def test_gradients_of_the_feed_forward():
    ffn = shaken(SlimmableFeedForward(4, 6))
    ladder = Ladder((1, 2, 3), (2, 3, 6))

    def run(x, gates, w1, b1, w2, b2):
        weights = {"linear1.weight": w1, "linear1.bias": b1}
        weights |= {"linear2.weight": w2, "linear2.bias": b2}
        return torch.func.functional_call(ffn, weights, (x, Gates(ladder, gates)))

    x = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    gates = torch.rand(2, 3, 3, dtype=torch.double)
    gates[..., 0] = 1.0
    gates.requires_grad_()
    parameters = [p.detach().requires_grad_() for p in ffn.parameters()]

    def without_the_constant_gate(x, gates, *weights):
        gates = torch.cat((torch.ones_like(gates[..., :1]), gates[..., 1:]), -1)
        return run(x, gates, *weights)

    assert torch.autograd.gradcheck(without_the_constant_gate, (x, gates, *parameters))


def test_gates_and_weights_get_the_gradients_of_the_formula():
    """The masked form against autograd through its definition, gates of any value."""
    module = shaken(SlimmableLayer(DIM, HEADS, FFN))
    ladder = ladder_of(THREE)
    level = random_levels((4, 6), 3)
    x = torch.randn(4, 6, DIM).double().requires_grad_()
    gate = nested(level, 3).requires_grad_()
    upstream = torch.randn(4, 6, DIM).double()

    def gradients(y):
        return torch.autograd.grad((y * upstream).sum(), [x, gate, *module.parameters()])

    def formula():
        def spread(counts):
            sizes = torch.tensor([counts[0], counts[1] - counts[0], counts[2] - counts[1]])
            return gate.repeat_interleave(sizes, -1)

        attention, ffn = module.attention, module.ffn
        heads = spread(ladder.heads)
        qkv = attention.qkv(module.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        score = qkv[0] @ qkv[1].transpose(-1, -2) / (DIM // HEADS) ** 0.5
        active = heads.detach().transpose(1, 2)[:, :, None] > 0
        score = score.masked_fill(~active & active.any(-1, keepdim=True), -torch.inf)
        value = (score.softmax(-1) @ qkv[2]).transpose(1, 2) * heads[..., None]
        y = x + attention.out(value.flatten(2))
        hidden = ffn.linear1(module.norm2(y)).relu() * spread(ladder.neurons)
        return y + ffn.linear2(hidden)

    for got, expected in zip(
        gradients(module(x, Gates(ladder, gate))), gradients(formula()), strict=True
    ):
        if got.shape == gate.shape:  # the first gate is a constant
            got, expected = got[..., 1:], expected[..., 1:]
        assert got.abs().max() > 0
        assert (got - expected).abs().max() < 1e-10


def test_executed_work_is_the_formula_where_no_table_is_padded():
    ladder = ladder_of(THREE)
    level = torch.zeros(1, 4, 6, dtype=torch.long)
    level[0, 1], level[0, 2] = 1, 2  # widths differ between chunks, not within
    pieces = slimmable_rows.plan_pieces(level, (4,), ladder, False, level.device)
    work = slimmable_rows.macs(pieces, level.shape, DIM, DIM // HEADS, False)
    for chunk, (heads, neurons) in enumerate([(1, 6), (2, 12), (4, 24), (1, 6)]):
        projections = 4 * DIM * heads * DIM // HEADS
        core = 2 * 6 * heads * DIM // HEADS
        assert work[0, chunk].tolist() == [projections + core + 2 * DIM * neurons] * 6


def test_units_are_the_ceiling_in_spite_of_rounding_errors():
    assert [units(u, 8) for u in (0.125, 0.126, 0.25, 1.0)] == [1, 2, 2, 8]
    assert units(0.55, 100) == 55  # 0.55 * 100 is 55.000000000000007


@pytest.mark.parametrize("widths", [(), (0.0, 1.0), (0.5, 1.1), (0.5, 0.5), (1.0, 0.5)])
def test_widths_that_are_none(widths):
    with pytest.raises(ValueError, match="widths must"):
        ladder_of(widths)
