"""TF-MoE separator: the contract, the literal formulation as reference, and the paper's laws."""

from __future__ import annotations

import plain
import pytest
import torch
from contract import SeparatorContract
from espnet2.enh.layers.bsrnn import get_mel_subbands
from torch_complex.tensor import ComplexTensor

from espnet2_sepx.separators.tf_moe import TFMoESeparator

TINY = {
    "num_channels": 8,
    "num_blocks": 2,
    "num_bands": 6,
    "sample_rate": 8000,
    "num_experts": 3,
    "num_heads": 2,
    "head_dim": 4,
    "conv_kernel": 5,
    "max_rel_pos": 6,
}


def build(**options) -> TFMoESeparator:
    return plain.as_if_trained(TFMoESeparator(33, **{**TINY, **options}))


def spectrum(batch: int, frames: int) -> torch.Tensor:
    return torch.randn(batch, frames, 33, dtype=torch.complex128)


def run(model, x, lengths=None):
    return model(x, torch.tensor(lengths or [x.shape[1]] * x.shape[0]))


class TestMixtures(SeparatorContract):
    def build(self, **options):
        return build(**options)


class TestTopTwo(SeparatorContract):
    def build(self, **options):
        return build(num_blocks=1, top_k=2, balance_scope="batch", num_spk=3, **options)

    num_spk = 3


class TestRecurrentTime(SeparatorContract):
    def build(self, **options):
        return build(num_blocks=1, t_module="rnn", f_module="conformer", **options)


class TestRecurrentFrequency(SeparatorContract):
    def build(self, **options):
        options = {"t_module": "moe", "f_module": "rnn", "rnn_type": "lstm", **options}
        return build(num_blocks=1, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"t_module": "conformer", "f_module": "conformer"},
        {},
        {"top_k": [1, 2], "num_experts": [4, 3], "gate": "straight_through"},
        {"gate": "normalised", "balance_scope": "batch"},
        {"t_module": "rnn", "f_module": "moe"},
        {"t_module": "conformer", "f_module": "rnn", "rnn_type": "lstm"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()) or "default",
)
def test_equals_the_literal_formulation(options) -> None:
    model = build(**options).double()
    x = spectrum(2, 11)
    for training in (True, False):
        model.train(training)
        results = []
        for separate in (lambda: (*run(model, x)[::2],), lambda: plain.separate(model, x)):
            model.zero_grad()
            outputs, other = separate()
            balance = other["moe_balance"] if isinstance(other, dict) else other
            loss = sum(y.abs().square().sum() for y in outputs) + balance
            loss.backward()
            results.append((outputs, balance, [p.grad.clone() for p in model.parameters()]))
        (ours, loss, grads), (theirs, their_loss, their_grads) = results
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(loss, their_loss, rtol=1e-9, atol=1e-9)
        for a, b in zip(grads, their_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_float32_inference_equals_the_literal_formulation() -> None:
    model = TFMoESeparator(129, num_blocks=1, num_bands=20, sample_rate=8000, num_experts=4).eval()
    x = torch.randn(1, 140, 129, dtype=torch.complex64)
    with torch.no_grad():
        for a, b in zip(run(model, x)[0], plain.separate(model, x)[0], strict=True):
            assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_gain_equivariance_and_silence() -> None:
    model, x = build().double().eval(), spectrum(1, 9)
    for y, z in zip(run(model, x)[0], run(model, 1000 * x)[0], strict=True):
        torch.testing.assert_close(1000 * y, z, rtol=1e-9, atol=1e-9)
    batch = torch.cat([x, torch.zeros_like(x)]).requires_grad_()
    outputs = run(model, batch)[0]
    assert all(y[1].abs().max() == 0 for y in outputs)
    sum(y.abs().square().sum() for y in outputs).backward()
    assert torch.view_as_real(batch.grad).isfinite().all()


def test_level_counts_valid_frames_only() -> None:
    model, x = build().double().eval(), spectrum(1, 9)
    loud = torch.cat([x, 100 * spectrum(1, 4)], 1)
    for y, z in zip(run(model, x)[0], run(model, loud, [9])[0], strict=True):
        torch.testing.assert_close(y, z[:, :9], rtol=1e-9, atol=1e-12)


def test_kinds_of_input() -> None:
    model, x = build().double().eval(), spectrum(1, 5)
    reference = run(model, x)[0]
    for other in (torch.view_as_real(x), ComplexTensor(x.real, x.imag)):
        for y, z in zip(reference, run(model, other)[0], strict=True):
            assert isinstance(z, ComplexTensor) == isinstance(other, ComplexTensor)
            assert torch.equal(y.real, z.real)
            assert torch.equal(y.imag, z.imag)
    with pytest.raises(ValueError, match="input must be complex"):
        run(model, x.real)
    with pytest.raises(ValueError, match="ilens"):
        run(model, x, [6])


def test_unit_mask_returns_the_mixture_times_the_coverage() -> None:
    model, x = build().double().eval(), spectrum(1, 4)
    decoder = model.mask_decoder
    with torch.no_grad():
        for parameter in (decoder.weight2, decoder.bias2):
            parameter.zero_()
        row = 0
        for width, count in decoder.groups:  # GLU: value half 1 + 0i, gate half open
            half = 2 * width * model.num_spk
            for _ in range(count):
                decoder.bias2[0, row : row + half : 2] = 1.0
                decoder.bias2[0, row + half : row + 2 * half] = 100.0
                row += 2 * half
    coverage = torch.zeros(33, dtype=torch.float64)
    for first, last in model.bands:
        coverage[first : last + 1] += 1
    for y in run(model.eval(), x)[0]:
        torch.testing.assert_close(y, x * coverage)


def test_keys_of_others_never_change() -> None:
    model = build(num_blocks=1)
    x = torch.randn(2, 8, 33, dtype=torch.complex64)
    keys = {
        frozenset(run(model.train(mode), x, lengths)[2])
        for mode, lengths in ((True, [8, 8]), (True, [8, 3]), (False, [8, 8]))
    }
    assert len(keys) == 1
    names = {key for key in keys.pop() if key.startswith("moe_")}
    figures = ("balance", "max_share", "min_share", "alive", "top1_prob")
    assert names == {"moe_balance"} | {
        f"moe_{axis}1_ffn{ffn}_{figure}" for axis in "tf" for ffn in (1, 2) for figure in figures
    }
    others = run(model.train(), x)[2]
    assert others["moe_balance"].requires_grad
    total = sum(v for k, v in others.items() if k.endswith("_balance") and "ffn" in k)
    torch.testing.assert_close(others["moe_balance"].detach(), total)
    assert not any(v.requires_grad for k, v in others.items() if k != "moe_balance")
    dense = run(build(t_module="conformer", f_module="conformer"), x)[2]
    assert dense["moe_balance"].item() == 0.0


def test_routing_record() -> None:
    model = build(num_blocks=2, top_k=2).eval()
    x = torch.randn(2, 8, 33, dtype=torch.complex64)
    with torch.no_grad():
        silent = run(model, x, [8, 5])[0]
        assert model.last_routing == []
        model.record_routing = True
        recorded, _, others = run(model, x, [8, 5])
    assert all(torch.equal(a, b) for a, b in zip(silent, recorded, strict=True))
    assert "last_routing" not in model.state_dict()
    names = [(r.axis, r.block, r.ffn) for r in model.last_routing]
    assert names == [(a, b, f) for b in (1, 2) for a in ("frequency", "time") for f in (1, 2)]
    for record in model.last_routing:
        assert record.expert.shape == record.prob.shape == (2, 8, 6, 2)
        assert record.expert.dtype == torch.int16
        assert record.prob.dtype == torch.float32
        assert record.valid.tolist() == [[True] * 8, [True] * 5 + [False] * 3]
        assert (record.prob[..., 0] >= record.prob[..., 1]).all()
        assert (record.expert[..., 0] != record.expert[..., 1]).all()
        load = torch.bincount(record.expert[record.valid].flatten().long(), minlength=3)
        name = f"moe_{record.axis[0]}{record.block}_ffn{record.ffn}_max_share"
        assert others[name].item() == pytest.approx(3 * (load.max() / load.sum()).item())


@pytest.mark.parametrize(
    ("bins", "bands", "rate"), [(257, 80, 16000), (129, 20, 8000), (129, 40, 8000), (257, 40, 8000)]
)
def test_mel_bands_are_espnets(bins, bands, rate) -> None:
    model = TFMoESeparator(
        bins,
        num_bands=bands,
        sample_rate=rate,
        num_blocks=1,
        num_channels=4,
        t_module="conformer",
        f_module="conformer",
    )
    assert model.bands == get_mel_subbands(bins, bands, rate)


def test_explicit_bands() -> None:
    model = build(bands=[[0, 9], [5, 20], [21, 32]], num_bands=999).double()
    assert run(model, spectrum(1, 5))[0][0].shape == (1, 5, 33)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_channels": 0}, "num_channels"),
        ({"conv_kernel": 4}, "conv_kernel"),
        ({"dropout": 1.0}, "dropout"),
        ({"t_module": "lstm"}, "t_module"),
        ({"f_module": "x"}, "f_module"),
        ({"t_module": "rnn", "rnn_type": "x"}, "rnn_type"),
        ({"top_k": 4}, "top_k"),
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": [1, 2, 3]}, "num_experts"),
        ({"gate": "x"}, "gate"),
        ({"balance_scope": "x"}, "balance_scope"),
        ({"num_bands": 60}, "num_bands=60"),
        ({"num_bands": 0}, "num_bands"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"bands": [[0, 3]]}, "bands must cover"),
        ({"bands": [[0, 33]]}, "bands must be"),
    ],
)
def test_bad_values_are_named(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_parameters_do_not_depend_on_dropout_and_dropout_acts() -> None:
    model = build(dropout=0.5).double()
    x = spectrum(1, 6)
    assert not torch.equal(run(model.train(), x)[0][0], run(model, x)[0][0])
    model.eval()
    assert torch.equal(run(model, x)[0][0], run(model, x)[0][0])
