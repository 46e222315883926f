"""RE-SepFormer: the contract, the literal formulation, causality and streaming."""

from __future__ import annotations

import pytest
import sepformer_reference as reference
import torch
from contract import SeparatorContract
from torch_complex.tensor import ComplexTensor

from espnet2_sepx.layers import transformer
from espnet2_sepx.separators.re_sepformer import RESepFormerSeparator

TINY = {
    "chunk_size": 6,
    "intra_layers": 1,
    "intra_ffn_dim": 12,
    "memory_layers": 2,
    "memory_ffn_dim": 10,
    "num_heads": 2,
}
CAUSAL = [{"causal": "chunk"}, {"causal": "strict"}]
CAUSAL += [{**options, "memory_context": 2} for options in CAUSAL]
CAUSAL += [{"causal": "chunk", "intra_norm": "gln"}]


def build(**options) -> RESepFormerSeparator:
    return RESepFormerSeparator(8, **{**TINY, **options})


def scrambled(**options) -> RESepFormerSeparator:
    """Norms and biases away from their trivial initial values; float64."""
    model = build(**options).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def frames(batch: int, count: int) -> torch.Tensor:
    return torch.rand(batch, count, 8, dtype=torch.double)


def run(model, x, lengths=None):
    return model(x, torch.tensor(lengths or [x.shape[1]] * x.shape[0]))


class Contract(SeparatorContract):
    input_dim = 8

    def mixture(self, batch, frames_):
        return frames(batch, frames_)


class TestOffline(Contract):
    def build(self, **options):
        return build(level_norm=True, **options)


class TestChunk(Contract):
    def build(self, **options):
        return build(causal="chunk", memory_context=3, **options)


class TestStrictThreeBlocks(Contract):
    def build(self, **options):
        return build(causal="strict", num_blocks=3, num_spk=3, pad_mode="minimal", **options)

    num_spk = 3


@pytest.mark.parametrize("count", [5, 6, 20])
@pytest.mark.parametrize("options", [{}, {"num_blocks": 3}, *CAUSAL], ids=str)
def test_equals_the_literal_formulation(monkeypatch, options, count) -> None:
    monkeypatch.setitem(transformer.GROUP_TOKENS, "cpu", 12)  # two chunks at a time
    model, x = scrambled(**options), frames(1, count)
    expected = reference.re_sepformer(model, x[0])
    for graph in (True, False):
        with torch.set_grad_enabled(graph):
            outputs, _, others = run(model, x)
        for n, (output, mask) in enumerate(zip(outputs, expected, strict=True), 1):
            # positions are made in float32
            torch.testing.assert_close(others[f"mask_spk{n}"][0], mask, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(output, others[f"mask_spk{n}"] * x)


def test_parameters_of_the_paper() -> None:
    model = RESepFormerSeparator(128)
    block = 8 * 329_856 + 2 * 128 + 2 * 128
    assert sum(p.numel() for p in model.intra[0].parameters()) == block == 2_639_360
    assert sum(p.numel() for p in model.parameters()) == 3 * block + 1 + 33_024


def test_items_of_a_batch_do_not_see_each_other() -> None:
    model, x = scrambled(), frames(2, 15).requires_grad_()
    sum(y[0].sum() for y in run(model, x)[0]).backward()
    assert x.grad[0].abs().max() > 0
    assert x.grad[1].abs().max() == 0


def first_change(model, x: torch.Tensor, frame: int) -> int:
    changed = x.clone()
    changed[:, frame] += torch.rand(8)  # layer norms would not see the same in all channels
    with torch.no_grad():
        one, two = (torch.stack(list(run(model, y)[2].values())) for y in (x, changed))
    return int((one - two).abs().amax((0, 1, 3)).nonzero()[0])


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_causality(options) -> None:
    model, x = scrambled(nonlinear="tanh", **options), frames(1, 30)
    for frame in (0, 5, 17, 18, 23):
        expected = frame if options["causal"] == "strict" else frame // 6 * 6
        assert first_change(model, x, frame) == expected
    assert model.lookahead_frames == (0 if options["causal"] == "strict" else 5)


def test_memory_with_global_norm_is_not_causal_and_says_so() -> None:
    model, x = scrambled(causal="chunk", memory_norm="gln", nonlinear="tanh"), frames(1, 30)
    assert first_change(model, x, 23) == 0
    assert model.lookahead_frames is None
    with pytest.raises(ValueError, match="memory_norm"):
        model.forward_streaming(x)


@pytest.mark.parametrize("options", CAUSAL, ids=str)
@pytest.mark.parametrize("count", [4, 18, 64])
def test_streaming_equals_offline(options, count) -> None:
    model, x = scrambled(predict_noise=True, **options), frames(2, count)
    with torch.no_grad():
        expected, _, expected_others = run(model, x)
    states, parts, noise, at = None, [], [], 0
    while at < count:
        step = int(torch.randint(1, 15, ()))
        outputs, states, others = model.forward_streaming(x[:, at : at + step], states)
        parts.append(outputs)
        noise.append(others["noise1"])
        at += step
    outputs, states, others = model.flush_streaming(states)
    parts.append(outputs)
    noise.append(others["noise1"])
    for streamed, whole in zip(zip(*parts, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(streamed, 1), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.cat(noise, 1), expected_others["noise1"])


@pytest.mark.parametrize("causal", ["chunk", "strict"])
def test_state_is_bounded_with_a_context_and_grows_without(causal) -> None:
    sizes = {}
    for context in (2, None):
        model, states = scrambled(causal=causal, memory_context=context), None
        sizes[context] = []
        for _ in range(40):
            _, states, _ = model.forward_streaming(frames(1, 6), states)
            sizes[context].append(states.nbytes)
    assert len(set(sizes[2][4:])) == 1
    assert sizes[None][-1] > 3 * sizes[None][4]


def test_level_norm_makes_gain_not_matter() -> None:
    model, x = build(level_norm=True).double().eval(), frames(1, 9)
    for y, z in zip(run(model, x)[0], run(model, 1000 * x)[0], strict=True):
        torch.testing.assert_close(1000 * y, z, rtol=1e-6, atol=1e-9)
    assert all(y.abs().max() == 0 for y in run(model, 0 * x)[0])


def test_pad_mode_minimal_saves_the_empty_chunk() -> None:
    always, minimal = scrambled(), scrambled(pad_mode="minimal")
    minimal.load_state_dict(always.state_dict())
    x = frames(1, 5)
    torch.testing.assert_close(run(always, x)[0][0], run(minimal, x)[0][0])
    assert minimal.segmentation.num_chunks(12) == 2
    assert always.segmentation.num_chunks(12) == 3


def test_masks_of_a_spectrum_come_from_its_magnitude() -> None:
    model = scrambled(nonlinear="sigmoid")
    x = torch.randn(1, 7, 8, dtype=torch.complex128)
    masks = run(model, x.abs())[2]
    for spectrum in (x, ComplexTensor(x.real, x.imag)):
        outputs, _, others = run(model, spectrum)
        torch.testing.assert_close(others["mask_spk1"], masks["mask_spk1"])
        torch.testing.assert_close(outputs[0].real, (x * masks["mask_spk1"]).real)
        assert isinstance(outputs[0], ComplexTensor) == isinstance(spectrum, ComplexTensor)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_spk": 0}, "num_spk"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"num_heads": 3}, "num_heads"),
        ({"intra_ffn_dim": 0}, "intra_ffn_dim"),
        ({"causal": "yes"}, "causal"),
        ({"memory_context": 3}, "memory_context"),
        ({"memory_context": 0, "causal": True}, "memory_context"),
        ({"intra_norm": "bn"}, "intra_norm"),
        ({"causal": "strict", "intra_norm": "gln"}, "strict"),
        ({"pad_mode": "x"}, "pad_mode"),
        ({"nonlinear": "x"}, "nonlinear"),
        ({"dropout": 1.0}, "dropout"),
        ({"level_norm": True, "causal": True}, "level_norm"),
    ],
)
def test_bad_values_are_named(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)
