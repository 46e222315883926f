"""SPMamba separator: the contract, the published arithmetic, counts, streaming."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import published_spmamba
import pytest
import torch
from contract import SeparatorContract
from torch_complex.tensor import ComplexTensor

from espnet2_sepx.separators.spmamba import SPMambaSeparator

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "n_layers": 1,
    "emb_dim": 4,
    "emb_ks": 4,
    "d_state": 4,
    "expand": 1,
    "attn_n_head": 2,
    "attn_approx_qk_dim": 66,
    "lstm_hidden_units": 8,
}


def build(bins: int = 33, **options) -> SPMambaSeparator:
    return SPMambaSeparator(bins, **{**TINY, **options})


def spectrum(batch: int, frames: int) -> torch.Tensor:
    return torch.randn(batch, frames, 33, dtype=torch.complex128)


def run(model, x, lengths=None):
    return model(x, torch.tensor(lengths or [x.shape[1]] * x.shape[0]))


class TestBothPaths(SeparatorContract):
    def build(self, **options):
        return build(n_layers=2, **options)


class TestThreeSpeakersHopAndDepth(SeparatorContract):
    num_spk = 3

    def build(self, **options):
        return build(num_spk=3, emb_hs=2, mamba_layers=2, **options)


class TestFrequencyOnly(SeparatorContract):
    def build(self, **options):
        return build(t_module="blstm", grad_checkpoint=True, **options)


class TestTimeOnly(SeparatorContract):
    def build(self, **options):
        return build(f_module="blstm", level_norm=False, **options)


class TestCausal(SeparatorContract):
    def build(self, **options):
        return build(causal=True, attn_context=5, **options)


# ---- counts ------------------------------------------------------------------------------------

VARIANTS = {
    ("mamba", "mamba"): (6_141_826, 6_094_498),
    ("mamba", "blstm"): (8_284_546, 8_237_218),
    ("blstm", "mamba"): (8_284_546, 8_237_218),
    ("blstm", "blstm"): (10_427_266, 10_379_938),
}


@pytest.mark.parametrize("modules", VARIANTS, ids="-".join)
def test_parameters_of_table_2(modules) -> None:
    f_module, t_module = modules
    for bins, expected in zip((257, 129), VARIANTS[modules], strict=True):
        model = SPMambaSeparator(bins, f_module=f_module, t_module=t_module)
        assert sum(p.numel() for p in model.parameters()) == expected


def published_shapes(queries: int, bins: int) -> dict[str, tuple[int, ...]]:
    """Section 5 of the specification, key by key."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv.0.weight": (16, 2, 3, 3),
        "conv.0.bias": (16,),
        "conv.1.weight": (16,),
        "conv.1.bias": (16,),
        "deconv.weight": (16, 4, 3, 3),
        "deconv.bias": (4,),
    }
    mixer = {
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

    def projection(name: str, channels: int) -> None:
        shapes[f"{name}.0.weight"] = (channels, 16, 1, 1)
        shapes[f"{name}.0.bias"] = (channels,)
        shapes[f"{name}.1.weight"] = (1,)
        shapes[f"{name}.2.gamma"] = shapes[f"{name}.2.beta"] = (1, channels, 1, bins)

    for block in (f"blocks.{b}" for b in range(6)):
        for axis in ("intra", "inter"):
            shapes[f"{block}.{axis}_norm.gamma"] = (1, 16, 1, 1)
            shapes[f"{block}.{axis}_norm.beta"] = (1, 16, 1, 1)
            shapes[f"{block}.{axis}_linear.weight"] = (256, 16, 8)
            shapes[f"{block}.{axis}_linear.bias"] = (16,)
            for direction in ("forward", "backward"):
                layer = f"{block}.{axis}_mamba.{direction}_blocks.0"
                shapes[f"{layer}.norm.weight"] = (128,)
                for name, shape in mixer.items():
                    shapes[f"{layer}.mixer.{name}"] = shape
        for head in range(4):
            projection(f"{block}.attn_conv_Q_{head}", queries)
            projection(f"{block}.attn_conv_K_{head}", queries)
            projection(f"{block}.attn_conv_V_{head}", 4)
        projection(f"{block}.attn_concat_proj", 16)
    return shapes


@pytest.mark.parametrize(("queries", "bins"), [(2, 257), (4, 129)])
def test_state_dict_is_the_published_one(queries, bins) -> None:
    found = {k: tuple(v.shape) for k, v in SPMambaSeparator(bins).state_dict().items()}
    expected = published_shapes(queries, bins)
    assert len(expected) == 684
    assert found == expected


# ---- parity with the published arithmetic --------------------------------------------------------


def espnet_model(task, separator: str, n_fft: int, hop: int, **conf):
    parser = task.get_parser()
    stft = {"n_fft": n_fft, "win_length": n_fft, "hop_length": hop}
    config = {
        "encoder": "stft",
        "encoder_conf": stft,
        "decoder": "stft",
        "decoder_conf": stft,
        "separator": separator,
        "separator_conf": {"level_norm": False, **conf},
        "model_conf": {"normalize_variance": True},
        "criterions": [{"name": "snr", "conf": {}, "wrapper": "pit", "wrapper_conf": {}}],
    }
    args = parser.parse_args([])
    for key, value in config.items():
        setattr(args, key, value)
    return task.build_model(args).eval()


def randomised(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights away from their initial values: norms, biases and gates that do something."""
    return {
        name: t + 0.1 * torch.randn(t.shape, generator=torch.Generator().manual_seed(i)).to(t)
        for i, (name, t) in enumerate(state.items())
    }


def check_parity(model, wave: torch.Tensor, hop_length: int, tolerance: float, **literal) -> None:
    from espnet2_sepx.profiling.model import separate

    state = randomised(model.separator.state_dict())
    model.separator.load_state_dict(state, strict=True)
    model.eval()
    exact = {name: tensor.double() for name, tensor in state.items()}
    n_fft = model.encoder.n_fft
    expected = published_spmamba.separate(exact, wave.double(), n_fft, hop_length, **literal)
    found = torch.cat(separate(model, wave[None], 16000))
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() < tolerance * expected.abs().max()


def test_full_model_equals_the_published_arithmetic(espnet_task) -> None:
    model = espnet_model(espnet_task, "spmamba", 512, 128)
    check_parity(model, 0.1 * torch.randn(1100), 128, 1e-5)


@pytest.mark.parametrize(
    ("options", "literal"),
    [
        ({"emb_hs": 2, "mamba_layers": 2}, {"hop": 2}),
        ({"f_module": "blstm"}, {}),
        ({"t_module": "blstm"}, {}),
        ({"emb_ks": 8}, {"window": 8}),  # fewer frames than a window holds
    ],
    ids=["hop-depth", "td", "fd", "short"],
)
def test_variants_equal_the_published_arithmetic(espnet_task, options, literal) -> None:
    # ESPnet holds its window in float32, hence the tolerance.
    model = espnet_model(espnet_task, "spmamba", 64, 32, **{**TINY, "n_layers": 2, **options})
    literal = {"window": 4, "heads": 2, **literal}
    check_parity(model.double(), torch.randn(150).double(), 32, 1e-6, **literal)


@pytest.mark.parametrize("samples", [1023, 1600, 2001])
def test_length_is_kept_and_silence_is_silent(espnet_task, samples) -> None:
    from espnet2_sepx.profiling.model import separate

    model = espnet_model(espnet_task, "spmamba", 64, 32, **TINY)
    with torch.no_grad():
        for wave in (torch.randn(1, samples), torch.zeros(1, samples)):
            outputs = separate(model, wave, 8000)
            assert all(y.shape == wave.shape and y.isfinite().all() for y in outputs)
            assert wave.any() or not any(y.any() for y in outputs)


# ---- laws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_gain_equivariance_and_silence(causal) -> None:
    model, x = build(causal=causal).double().eval(), spectrum(1, 9)
    for y, z in zip(run(model, x)[0], run(model, 1000 * x)[0], strict=True):
        torch.testing.assert_close(1000 * y, z, rtol=1e-6, atol=1e-9)
    batch = torch.cat([x, torch.zeros_like(x)]).requires_grad_()
    outputs = run(model, batch)[0]
    assert all(y[1].abs().max() == 0 for y in outputs)
    sum(y.abs().square().sum() for y in outputs).backward()
    assert torch.view_as_real(batch.grad).isfinite().all()


def test_backend_changes_little_at_model_level() -> None:
    x, outputs = torch.randn(1, 20, 33, dtype=torch.complex64), []
    for backend in ("auto", "torch", "reference"):
        torch.manual_seed(0)
        model = build(n_layers=2, scan_backend=backend).eval()
        with torch.no_grad():
            outputs.append(torch.stack(run(model, x)[0]))
    for other in outputs[1:]:
        assert (other - outputs[0]).abs().max() < 2e-6 * outputs[0].abs().max()


def test_kinds_of_input() -> None:
    model, x = build().double().eval(), spectrum(1, 5)
    reference = run(model, x)[0]
    for other in (torch.view_as_real(x), ComplexTensor(x.real, x.imag)):
        for y, z in zip(reference, run(model, other)[0], strict=True):
            assert isinstance(z, ComplexTensor) == isinstance(other, ComplexTensor)
            assert torch.equal(y.real, z.real)
            assert torch.equal(y.imag, z.imag)
    with pytest.raises(ValueError, match="ilens"):
        run(model, x, [6])


def test_mask_times_mixture_is_the_output() -> None:
    model, x = build().double().eval(), spectrum(2, 6)
    outputs, _, others = run(model, x, [6, 4])
    for n, y in enumerate(outputs, start=1):
        torch.testing.assert_close((others[f"mask_spk{n}"] * x)[0], y[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_layers": 0}, "n_layers"),
        ({"emb_hs": 5}, "emb_hs"),
        ({"f_module": "gru"}, "f_module"),
        ({"t_module": "conformer"}, "t_module"),
        ({"activation": "sine"}, "activation"),
        ({"attn_n_head": 3}, "attn_n_head"),
        ({"causal": True, "emb_hs": 2}, "emb_hs must be 1"),
        ({"scan_backend": "cuda"}, "scan_backend"),
        ({"attn_context": 0}, "attn_context"),
        ({"expand": 0}, "expand"),
    ],
)
def test_bad_values_are_named(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)


# ---- causal ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"t_module": "blstm", "level_norm": False}, {"mamba_layers": 2}]
)
def test_streaming_equals_offline(options) -> None:
    model = build(causal=True, attn_context=6, n_layers=2, num_spk=3, **options).eval()
    x = torch.randn(2, 23, 33, dtype=torch.complex64)
    with torch.no_grad():
        whole = run(model, x)[0]
        state, chunks = None, []
        for chunk in x.split((1, 1, 1, 5, 1, 14), 1):
            outputs, state, others = model.forward_streaming(chunk, state)
            chunks.append(outputs)
        assert others == {}
        for y, parts in zip(whole, zip(*chunks, strict=True), strict=True):
            assert (torch.cat(parts, 1) - y).abs().max() < 1e-5 * y.abs().max()
        size = sum(t.numel() for t in tensors(state))
        _, state, _ = model.forward_streaming(x, state)
        assert sum(t.numel() for t in tensors(state)) == size


def tensors(state) -> list[torch.Tensor]:
    """All tensors in dataclasses, lists and tuples."""
    if isinstance(state, torch.Tensor):
        return [state]
    if dataclasses.is_dataclass(state):
        state = list(vars(state).values())
    return [t for item in state for t in tensors(item)] if isinstance(state, (list, tuple)) else []


def test_future_frames_do_not_matter_and_past_ones_do() -> None:
    model, x = build(causal=True, n_layers=2).double().eval(), spectrum(1, 20)
    changed = x.clone()
    changed[:, 12:] = spectrum(1, 8)
    with torch.no_grad():
        for y, z in zip(run(model, x)[0], run(model, changed)[0], strict=True):
            difference = (y - z).abs().amax((0, 2))
            assert difference[:12].max() < 1e-12
            assert difference[12:].min() > 1e-6


def test_only_a_causal_model_streams() -> None:
    with pytest.raises(ValueError, match="causal must be true"):
        build().forward_streaming(spectrum(1, 1), None)
    assert build().algorithmic_latency is None
    assert build(causal=True).algorithmic_latency == 64


def test_espnets_streaming_command_class_equals_offline(experiment) -> None:
    from espnet2.bin.enh_inference_streaming import SeparateSpeechStreaming

    from espnet2_sepx.profiling.latency import algorithmic_latency
    from espnet2_sepx.profiling.model import separate

    stft = {"n_fft": 64, "win_length": 64, "hop_length": 16}
    front = {"encoder": "stft", "encoder_conf": stft, "decoder": "stft", "decoder_conf": stft}
    config = front | {
        "separator": "spmamba",
        "separator_conf": {**TINY, "causal": True},
        "criterions": [{"name": "snr", "conf": {}, "wrapper": "pit", "wrapper_conf": {}}],
    }
    stream = SeparateSpeechStreaming(*experiment(config))
    model, wave = stream.enh_model, torch.randn(1, 800)
    chunks = [stream(chunk) for chunk in stream.frame(wave)]
    with torch.no_grad():
        offline = separate(model, wave, 8000)
        latency = algorithmic_latency(lambda w: separate(model, w, 8000), torch.randn(1, 1600))
    for n, expected in enumerate(offline):
        merged = stream.merge([chunk[n] for chunk in chunks], torch.tensor([800]))
        assert (merged - expected).abs().max() < 1e-5 * expected.abs().max()
    assert latency <= model.separator.algorithmic_latency


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_200_bfloat16_steps_keep_gradients_finite(checkpointed) -> None:
    torch.manual_seed(0)
    model = build(n_layers=2, emb_dim=8, expand=2, grad_checkpoint=checkpointed).train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(200):
        x = torch.randn(2, 20, 33, dtype=torch.complex64)
        low, high = x.clone(), x.clone()
        low[..., 16:], high[..., :16] = 0, 0
        with torch.autocast("cpu", torch.bfloat16):
            outputs = run(model, x)[0]
        loss = sum((y - t).abs().square().mean() for y, t in zip(outputs, (low, high), strict=True))
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_golden_rows() -> None:
    golden = json.loads((ROOT / "test" / "golden" / "models.json").read_text())
    rows = {
        "echo2mix/spmamba/conf/train_spmamba": 6_141_826,
        "echo2mix/spmamba/conf/train_spmamba_fd": 8_284_546,
        "echo2mix/spmamba/conf/train_spmamba_td": 8_284_546,
        "echo2mix/spmamba/conf/train_spmamba_blstm": 10_427_266,
        "echo2mix/spmamba/conf/train_tfgridnet": 14_470_546,
    }
    for corpus in ("libri2mix", "wham", "wsj0_2mix"):
        rows[f"{corpus}/spmamba/conf/train_spmamba"] = 6_094_498
    for config, parameters in rows.items():
        assert golden[f"egs2/{config}.yaml"]["parameters"] == parameters, config
