"""S4: kernels against dense state spaces, and the same numbers by FFT, recurrence and chunks."""

from __future__ import annotations

import copy

import plain_s4m
import pytest
import torch

from espnet2_sepx.layers import s4
from espnet2_sepx.layers.s4 import S4, convolve, fft_size
from espnet2_sepx.layers.state_space import STATE_SPACES, hippo_legs

KINDS = tuple(STATE_SPACES)


def layer(kind: str = "dplr", dim: int = 6, state_dim: int = 8, bidirectional: bool = True) -> S4:
    return S4(dim, state_dim, kind, bidirectional).eval()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((one - other).abs().max() / other.abs().max()).item()


def test_hippo_legs_is_normal_plus_low_rank() -> None:
    size = 16
    w, B, P = hippo_legs(size)
    assert (w.real == -0.5).all()
    assert (w.imag < 0).all()
    n = torch.arange(size, dtype=torch.float64)
    A = -torch.tril(((2 * n + 1)[:, None] * (2 * n + 1)).sqrt(), -1) - torch.diag(n + 1)
    low_rank = torch.cat((P, P.conj()))
    dense = torch.diag(torch.cat((w, w.conj()))) - low_rank[:, None] * low_rank.conj()
    ours = torch.linalg.eigvals(dense).real.sort()[0]
    torch.testing.assert_close(ours, -1.0 - n.flip(0), atol=0, rtol=1e-4)  # those of A
    # impulse responses of (A, B) through C = B agree as well: the basis is that of B, too
    B_full = torch.cat((B, B.conj()))
    for t in (0.1, 1.0):
        theirs = (2 * n + 1).sqrt() @ torch.matrix_exp(A * t) @ (2 * n + 1).sqrt()
        response = B_full.conj() @ torch.matrix_exp(dense * t)
        torch.testing.assert_close((response @ B_full).real, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_equals_dense_recurrence(kind) -> None:
    space = STATE_SPACES[kind](24, 16).eval()
    reference = plain_s4m.kernel(space, 4001)
    with torch.no_grad():
        for length in (1, 2, 5, 127, 506, 1010, 4001):
            assert distance(space.kernel(length), reference[..., :length]) < 1e-6
        double = copy.deepcopy(space).double()
        for length in (1, 3, 506, 4001):
            assert distance(double.kernel(length), reference[..., :length]) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_shorter_kernel_is_the_beginning_of_a_longer_one(kind) -> None:
    space = STATE_SPACES[kind](4, 8).double()
    longest = space.kernel(300)
    for length in (1, 2, 7, 64, 65, 299):
        torch.testing.assert_close(space.kernel(length), longest[..., :length], rtol=0, atol=1e-12)


def test_dplr_kernel_equals_woodbury_and_cauchy() -> None:
    """The generating function at the roots of unity, from Cauchy sums over conjugate pairs."""
    length, space = 64, STATE_SPACES["dplr"](3, 8).double()
    dA, _, C = plain_s4m.dense_state_space(space)
    to_C_tilde = torch.eye(8) - torch.linalg.matrix_power(dA, length)
    C_tilde = (C[..., None, :] @ to_C_tilde)[..., 0, :]
    half = slice(None, 4)
    w = torch.complex(-space.log_decay.exp(), space.frequency)[:, None]
    B, P = (torch.view_as_complex(p.detach())[0] for p in (space.B, space.P))
    z = torch.exp(-2j * torch.pi * torch.arange(length, dtype=torch.float64) / length)
    g = 2 / space.log_dt.exp()[:, None] * (1 - z) / (1 + z)

    def cauchy(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Sum over a pair: v / (g - w) and its conjugate partner, (..., H, L)."""
        v = (left[..., half] * right)[..., None, :]
        return (v / (g[..., None] - w) + v.conj() / (g[..., None] - w.conj())).sum(-1)

    correction = cauchy(C_tilde, P) * cauchy(P.conj(), B) / (1 + cauchy(P.conj(), P))
    spectrum = 2 / (1 + z) * (cauchy(C_tilde, B) - correction)
    spectrum[..., length // 2] = 0  # z = -1 is a removable pole; that line is compared without
    ours = torch.fft.fft(space.kernel(length))
    ours[..., length // 2] = 0
    assert distance(ours, spectrum.detach()) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind) -> None:
    model = S4(2, 4, kind).double()
    u = torch.randn(1, 5, 2, dtype=torch.double, requires_grad=True)
    names = [name for name, _ in model.named_parameters()]

    def run(u: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (u,))

    assert torch.autograd.gradcheck(run, (u, *model.parameters()), atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 17, 64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_layer_equals_the_sum_over_all_pairs_of_frames(kind, bidirectional, length) -> None:
    model = layer(kind, bidirectional=bidirectional).double()
    u = torch.randn(2, length, 6, dtype=torch.double)
    expected = plain_s4m.s4(model, u.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(model(u), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_convolution_equals_recurrence_and_chunks(kind) -> None:
    model = layer(kind, dim=16, state_dim=16, bidirectional=False)
    u = torch.randn(2, 2000, 16)
    with torch.no_grad():
        whole = model(u)
        for sizes, tolerance in (([1] * 2000, 4e-6), ([100] * 20, 2e-6), ([1999, 1], 2e-6)):
            state, outputs = None, []
            for chunk in u.split(sizes, 1):
                y, state = model.forward_chunk(chunk, state)
                outputs.append(y)
            assert distance(torch.cat(outputs, 1), whole) < tolerance


def test_inference_in_blocks_of_channels_equals_the_graph_path(monkeypatch) -> None:
    monkeypatch.setattr(s4, "BLOCK_POINTS", 200)
    monkeypatch.setattr(s4, "MIN_CHANNELS", 2)
    model, u = layer(dim=9).double(), torch.randn(2, 30, 9, dtype=torch.double)
    with torch.no_grad():
        inference = model(u)
    torch.testing.assert_close(inference, model(u).detach(), rtol=0, atol=1e-13)


def test_chunks_need_a_causal_layer() -> None:
    with pytest.raises(ValueError, match="bidirectional=False"):
        layer().forward_chunk(torch.randn(1, 2, 6))


def linear_part(model: S4, u: torch.Tensor) -> torch.Tensor:
    """The layer before its nonlinearities, (B, H, L)."""
    return convolve(u, model.spectrum(u.shape[-1]))


def test_directions() -> None:
    model, u = layer().double(), torch.randn(1, 6, 20, dtype=torch.double)
    with torch.no_grad():
        model.D.zero_()
        future = copy.deepcopy(model)
        future.space.C[0].zero_()
        mirrored = copy.deepcopy(model)
        mirrored.space.C.copy_(mirrored.space.C.flip(0))
        mirrored.space.C[1].zero_()
        y = linear_part(future, u)
        expected = linear_part(mirrored, u.flip(-1)).flip(-1)
        torch.testing.assert_close(y[..., :-1], expected[..., 1:])
        assert y[..., -1].abs().max() < 1e-12
        model.space.C[1].zero_()
        changed = torch.cat((u[..., :12], torch.randn_like(u[..., 12:])), -1)
        difference = linear_part(model, changed) - linear_part(model, u)
        assert difference[..., :12].abs().max() < 1e-12
        assert difference[..., 12:].abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_stable_whatever_the_parameters(kind) -> None:
    space = STATE_SPACES[kind](32, 16)
    for noise in (0.0, 0.3, 2.0):
        with torch.no_grad():
            for parameter in space.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
            radius = torch.linalg.eigvals(space.discrete().transition.double()).abs().max()
        assert radius < 1.0 + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_long_recurrence_in_float32(kind) -> None:
    space = STATE_SPACES[kind](8, 16).eval()
    u = torch.randn(20000, 8, dtype=torch.double)
    outputs = []
    with torch.no_grad():
        discrete = space.discrete()
        for dtype in (torch.float32, torch.float64):
            dA, dB, C = (t.to(dtype) for t in vars(discrete).values())
            r, y = dB.new_zeros(8, 16, 1), []
            for value in u.to(dtype):
                r = torch.baddbmm(dB[..., None] * value[:, None, None], dA, r)
                y.append(r)
            outputs.append((C[0] * torch.stack(y)[..., 0]).sum(-1))
    assert distance(outputs[0], outputs[1]) < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_one_spectrum_for_many_calls(kind) -> None:
    """Values and gradients are those of making it anew for each."""
    model = layer(kind).double().train()
    u = torch.randn(2, 9, 6, dtype=torch.double)
    gradients = []
    for spectrum in (None, model.spectrum(9)):
        y = model(model(u, spectrum), spectrum)
        gradients.append(torch.autograd.grad(y.square().sum(), model.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_forward_changes_no_state_and_new_weights_count() -> None:
    model = layer()
    before = copy.deepcopy(model.state_dict())
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        model(torch.randn(1, 7, 6))
        longer = torch.randn(1, 50, 6)
        assert torch.equal(model(longer), fresh(longer))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        other = layer()
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(longer), other(longer))


def test_maps_of_a_chunk_are_kept_for_the_latest_size_only() -> None:
    model = layer(bidirectional=False)
    with torch.no_grad():
        first = model.space.passing(4)
        assert model.space.passing(4) is first
        assert model.space.passing(5).kernel.shape == (6, 5)
        assert model.space.passing(4) is not first
    assert model.space.passing(4).kernel.requires_grad


def test_half_precision_computes_kernels_in_float32() -> None:
    model, u = layer(dim=16), torch.randn(1, 40, 16)
    with torch.no_grad():
        exact = model(u)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.spectrum(40).values.dtype == torch.complex64
            y = model(u)
        assert y.dtype == torch.bfloat16
        assert distance(y.float(), exact) < 0.03
        half = copy.deepcopy(model).bfloat16()
        assert distance(half(u.bfloat16()).float(), exact) < 0.1


def test_no_weight_decay_on_the_dynamics() -> None:
    model = layer()
    exempt = {name for name, p in model.named_parameters() if hasattr(p, "_optim")}
    dynamics = {f"space.{name}" for name in ("C", "B", "P", "log_dt", "log_decay", "frequency")}
    assert exempt == {"D"} | dynamics


def test_fft_sizes() -> None:
    def smooth(n: int) -> bool:
        for factor in (2, 3, 5):
            while n % factor == 0:
                n //= factor
        return n == 1

    even_and_smooth = [n for n in range(2, 5000, 2) if smooth(n)]
    for at_least in (*range(1, 300), 505, 1009, 2019, 4001):
        assert fft_size(at_least) == next(n for n in even_and_smooth if n >= at_least)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "x"}, "kernel"),
        ({"state_dim": 3}, "state_dim"),
        ({"state_dim": 0}, "state_dim"),
    ],
)
def test_bad_values_are_named(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        S4(4, **options)
