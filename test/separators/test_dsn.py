"""DSN: the contract, its gate, and the equality of its ways to compute."""

import pytest
import torch
from contract import SeparatorContract

from espnet2_sepx.layers.slimmable import units
from espnet2_sepx.losses.auxiliary import AuxSolver
from espnet2_sepx.losses.complexity import DSNComplexity
from espnet2_sepx.separators.dsn import DSNSeparator
from espnet2_sepx.separators.sepformer import SepFormerSeparator

DIM = 16
SMALL = {
    "num_blocks": 2,
    "intra_layers": 1,
    "inter_layers": 1,
    "num_heads": 4,
    "ffn_dim": 24,
    "chunk_size": 10,
    "gate_dim": 8,
    "gate_ffn_dim": 16,
    "gate_pool_frames": 8,
}
TWO, THREE = (0.25, 1.0), (0.25, 0.5, 1.0)


def small(levels=THREE, **options):
    """Double precision, evaluation mode; norms and biases have values, the gate opinions."""
    torch.manual_seed(0)
    model = DSNSeparator(DIM, levels=levels, **(SMALL | options)).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def features(batch=1, frames=61):
    return torch.rand(batch, frames, DIM, dtype=torch.double)


def run(model, x, lengths=None):
    return model(x, torch.tensor(lengths or [x.shape[1]] * x.shape[0]))


def decided(model, x):
    """With a gate that likes each level somewhere."""
    classifier = model.gate.classifier
    classifier.weight.data *= 20.0
    logits = run(model, x)[2]["dsn_gate_logits"]
    classifier.bias.data -= logits.mean((0, 1))
    return model


def track(frames, levels=THREE, batch=1):
    return torch.tensor(levels)[torch.randint(len(levels), (batch, frames))]


class TestContract(SeparatorContract):
    input_dim = DIM

    def build(self, **options):
        return DSNSeparator(DIM, **(SMALL | {"levels": THREE, "gate_dropout": 0.0} | options))

    def mixture(self, batch, frames):
        return features(batch, frames)

    def test_inference_equals_the_graph_path(self):
        """The graph path is the masked one, inference the sparse one."""
        super().test_inference_equals_the_graph_path()

    def test_bfloat16_autocast(self):
        """At a width given from outside: rounding may change the gate's mind."""
        model = self.model(external_utilization=0.5).float().train()
        x = self.mixture(1, 10).float()
        with torch.autocast("cpu", torch.bfloat16):
            outputs, _, _ = self.run(model, x)
            with torch.no_grad():
                sparse = self.run(model.eval(), x)[0]
        for y, s, z in zip(outputs, sparse, self.run(model, x)[0], strict=True):
            assert (y - z).abs().mean() < 0.05 * z.abs().mean()
            assert (s - z).abs().mean() < 0.05 * z.abs().mean()


@pytest.mark.parametrize("levels", [TWO, THREE])
@pytest.mark.parametrize("frames", [4, 50, 63])
def test_sparse_equals_masked_at_random_widths(levels, frames):
    model, x = small(levels), features(2, frames)
    lengths = [frames, max(1, frames - 17)]
    for external in (track(frames, levels, 2), levels[0], levels[-1], 0.6):
        model.external_utilization = external
        model.execution = "masked"
        masked = run(model, x, lengths)[0]
        model.execution = "sparse"
        with torch.no_grad():
            sparse = run(model, x, lengths)[0]
        for y, z in zip(masked, sparse, strict=True):
            assert (y - z).abs().max() < 1e-12


def test_sparse_equals_masked_at_the_papers_size():
    """Single precision, all layers, a width per frame: to 1e-5 of the largest mask."""
    torch.manual_seed(0)
    levels = (0.125, 0.5, 1.0)
    model = DSNSeparator(256, levels=levels).eval()
    x = torch.rand(1, 301, 256)
    model.external_utilization = track(301, levels)
    with torch.no_grad():
        model.execution = "masked"
        masked = run(model, x)[0]
        model.execution = "sparse"
        sparse = run(model, x)[0]
    for y, z in zip(masked, sparse, strict=True):
        assert (y - z).abs().max() < 1e-5 * y.abs().max()


def test_the_gates_own_widths_are_executed_sparsely():
    x = features(frames=120)
    model = decided(small(), x)
    model.record_utilization = True
    with torch.no_grad():
        y, _, others = run(model, x)
    record = model.last_utilization
    assert len(record.utilization.unique()) > 1  # else this test shows nothing
    assert torch.equal(record.utilization, others["dsn_utilization"].float())
    assert record.logits.argmax(-1).equal(
        torch.searchsorted(torch.tensor(THREE), record.utilization)
    )
    assert record.valid.all()
    model.external_utilization = record.utilization
    model.execution = "masked"
    assert (run(model, x)[0][0] - y[0]).abs().max() < 1e-12


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 1.0])
def test_constant_width_is_the_static_network(width):
    """Widths need not be among the levels."""
    model, x = small(TWO, external_utilization=width), features()
    static = DSNSeparator(DIM, **(SMALL | {"levels": [width]})).double().eval()
    heads, neurons = (units(width, SMALL[key]) for key in ("num_heads", "ffn_dim"))
    state = {}
    for name, value in static.state_dict().items():
        full = model.state_dict()[name]
        if ".attention.qkv." in name:
            parts = full.view(3, DIM, -1)[:, : heads * DIM // 4]
            state[name] = parts.reshape(value.shape)
        else:
            state[name] = full[tuple(slice(size) for size in value.shape)]
    static.load_state_dict(state)
    assert neurons == static.blocks[0].intra.layers[0].ffn.linear1.out_features
    for y, z in zip(run(model, x)[0], run(static, x)[0], strict=True):
        assert (y - z).abs().max() < 1e-12
    with torch.no_grad():
        for y, z in zip(run(model, x)[0], run(static, x)[0], strict=True):
            assert (y - z).abs().max() < 1e-12


def test_full_width_is_sepformer():
    model = small([1.0], level_norm=False)
    options = {
        k: SMALL[k] for k in ("num_blocks", "intra_layers", "inter_layers", "num_heads", "ffn_dim")
    }
    other = SepFormerSeparator(DIM, chunk_size=10, **options).double().eval()
    other.load_state_dict(model.state_dict())
    x = features(2)
    for y, z in zip(run(model, x, [61, 20])[0], run(other, x, [61, 20])[0], strict=True):
        assert (y - z).abs().max() < 1e-12


def gate_gradient(model, signal, complexity):
    x = features(2)
    outputs, _, others = run(model, x)
    references = [torch.randn(2, 500) for _ in outputs]
    loss = signal * sum((y - features(2)).square().sum() for y in outputs)
    aux = AuxSolver(DSNComplexity(mode="si"))
    loss = loss + complexity * aux(references, references, {**others})[0]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    return sum(p.grad.abs().sum().item() for p in model.gate.parameters())


@pytest.mark.parametrize(("signal", "complexity"), [(1.0, 0.0), (0.0, 1.0)])
def test_the_gate_learns_from_either_loss(signal, complexity):
    assert gate_gradient(small(gate_dropout=0.0).train(), signal, complexity) > 0


def test_under_gate_dropout_the_gate_learns_nothing():
    assert gate_gradient(small(gate_dropout=1.0).train(), 1.0, 1.0) == 0


def test_gate_dropout_gives_an_utterance_one_level():
    model = small(gate_dropout=0.5).train()
    others = run(model, features(64))[2]
    used, gated = others["dsn_utilization"], others["dsn_gated"]
    assert 10 < gated.sum() < 54
    dropped = used[~gated]
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert sorted(dropped[:, 0].unique().tolist()) == list(THREE)
    assert torch.equal(used[gated], others["dsn_gate_utilization"][gated])
    assert not torch.equal(used[~gated], others["dsn_gate_utilization"][~gated])
    assert run(model.eval(), features(8))[2]["dsn_gated"].all()


def test_training_samples_and_evaluation_does_not():
    model, x = small(gate_dropout=0.0), features()
    used = [run(model.train(), x)[2]["dsn_utilization"] for _ in range(2)]
    assert not torch.equal(*used)
    used = [run(model.eval(), x)[2]["dsn_utilization"] for _ in range(2)]
    assert torch.equal(*used)


def test_a_price_moves_the_gate_from_one_end_to_the_other():
    x = features(frames=120)
    model, means = decided(small(), x), []
    for price in (-1e3, -0.5, 0.0, 0.5, 1e3):
        model.compute_price = price
        means.append(run(model, x)[2]["dsn_utilization"].mean().item())
    assert means == sorted(means, reverse=True)
    assert (means[0], means[-1]) == (1.0, 0.25)


@pytest.mark.parametrize(
    "external", [0.0, 1.1, [[[0.5]]], [0.5, -0.1], torch.linspace(0.1, 1.0, 40)]
)
def test_external_widths_that_are_none(external):
    with pytest.raises(ValueError, match="external_utilization"):
        small(external_utilization=external)
    with pytest.raises(ValueError, match="external_utilization"):
        small().external_utilization = external


def test_external_track_of_another_length():
    with pytest.raises(ValueError, match="does not fit 1 utterances of 61 frames"):
        run(small(external_utilization=[0.5, 1.0]), features())


def test_a_static_network_stays_below_its_width():
    with pytest.raises(ValueError, match=r"in \(0, 0.5\]"):
        small([0.5], external_utilization=0.75)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"levels": (1.0, 0.5)}, "widths must ascend"),
        ({"num_spk": 0}, "num_spk"),
        ({"nonlinear": "elu"}, "nonlinear"),
        ({"temperature": 0.0}, "temperature"),
        ({"gate_dropout": 1.5}, "gate_dropout"),
        ({"execution": "dense"}, "execution"),
        ({"num_heads": 5}, "num_heads"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        small(**options)


def test_gain_passes_through_and_silence_stays_silent():
    model, x = small(), features()
    with torch.no_grad():
        loud, soft = (run(model, gain * x)[0][0] / gain for gain in (1.0, 1e-3))
        assert (loud - soft).abs().max() < 1e-6 * loud.abs().max()
        assert not run(model, torch.zeros_like(x))[0][0].any()
