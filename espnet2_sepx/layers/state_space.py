"""Single-input state spaces of S4 with a real state: kernels, and maps that pass a state on.

Each of H channels has the state space dx/dt = A x + B u, y = 2 Re(C x) of S/2 complex numbers that
stand for S conjugate-symmetric ones; here it is the real vector r = [Re x; Im x] of S numbers, so
that nothing below needs complex tensors. The kernel K_l = C dA^l dB falls into two factors,
K_{ja+i} = (C dA^i)(dA^{ja} dB) with a near sqrt(L): memory and work grow with L, and no tensor of
size H S L exists.

Legend: H channels, S state size, D directions (1 causal, 2 two-sided), L kernel length,
a rows and b columns of the factors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet2_sepx.layers.cache import EvalCache


@dataclass(frozen=True)
class Discrete:
    """Discretised state spaces in real form."""

    transition: Tensor
    """dA (H, S, S)."""
    entry: Tensor
    """dB (H, S)."""
    readout: Tensor
    """C (D, H, S)."""

    def to(self, dtype: torch.dtype) -> Discrete:
        return Discrete(self.transition.to(dtype), self.entry.to(dtype), self.readout.to(dtype))


@dataclass(frozen=True)
class Passing:
    """What a chunk of n steps does to a state r, of the causal direction."""

    kernel: Tensor
    """(H, n): outputs from inputs of the same chunk."""
    rows: Tensor
    """(H, n, S): C dA^{i+1}, output i from the state before the chunk."""
    columns: Tensor
    """(H, S, n): dA^{n-1-j} dB, state after the chunk from input j."""
    transition: Tensor
    """(H, S, S): dA^n, state after the chunk from the state before."""


class StateSpace(EvalCache, ABC):
    """Parameters that both kinds share; a subclass discretises them and takes their powers.

    Args:
        dim: H.
        state_dim: S, even.
        bidirectional: whether a second kernel runs against time (D = 2).
        dt_min, dt_max: range of the initial step sizes, log-uniform.
    """

    def __init__(
        self,
        dim: int,
        state_dim: int = 16,
        bidirectional: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__()
        if state_dim < 2 or state_dim % 2:
            raise ValueError(f"state_dim must be even and at least 2, got {state_dim}")
        if not 0.0 < dt_min <= dt_max:
            raise ValueError(f"dt_min, dt_max must be 0 < dt_min <= dt_max, got {dt_min}, {dt_max}")
        half = state_dim // 2
        eigenvalues, entry, _ = hippo_legs(state_dim)
        self.C = nn.Parameter(math.sqrt(0.5) * torch.randn(1 + bidirectional, dim, half, 2))
        log_range = math.log(dt_min), math.log(dt_max)
        self.log_dt = nn.Parameter(torch.empty(dim).uniform_(*log_range))
        self.B = nn.Parameter(_per_channel(entry, dim))
        self.log_decay = nn.Parameter((-eigenvalues.real).log().float().repeat(dim, 1))
        self.frequency = nn.Parameter(eigenvalues.imag.float().repeat(dim, 1))

    @property
    def dtype(self) -> torch.dtype:
        """Of kernels and states: float32 at least."""
        return torch.promote_types(self.C.dtype, torch.float32)

    def kernel(self, length: int) -> Tensor:
        """Kernels ``(D, H, length)``, lag 0 first."""
        with torch.autocast(self.C.device.type, enabled=False):
            num_rows = 2 ** math.ceil(math.log2(length) / 2)
            num_columns = -(-length // num_rows)
            rows, columns = self._factors(self.discrete(), num_rows, num_columns)
            # (H, a D, S) (H, S, b) -> (H, a, D, b) -> (D, H, b, a)
            product = (rows @ columns).unflatten(1, (num_rows, -1))
            return product.permute(2, 0, 3, 1).flatten(2)[..., :length]

    def passing(self, steps: int) -> Passing:
        """Maps of a chunk; inference keeps those of the latest ``steps``."""
        with torch.autocast(self.C.device.type, enabled=False):
            return self.cached_for("passing", steps, lambda: self._passing(steps))

    def discrete(self) -> Discrete:
        """Discretised parameters; inference computes them once."""
        with torch.autocast(self.C.device.type, enabled=False):
            return self.cached("discrete", lambda: self._discretise().to(self.dtype))

    def _passing(self, steps: int) -> Passing:
        discrete = self._discretise()
        powers = _Powers(discrete.transition)
        rows = discrete.readout[0, :, None] @ discrete.transition
        columns = discrete.entry[..., None]
        for exponent in range((steps - 1).bit_length()):
            square = powers.square(exponent)
            rows = torch.cat((rows, rows @ square), 1)
            columns = torch.cat((columns, square @ columns), 2)
        return Passing(
            kernel=self.kernel(steps)[0],
            rows=rows[:, :steps].to(self.dtype),
            columns=columns[..., :steps].flip(-1).to(self.dtype),
            transition=powers.power(steps).to(self.dtype),
        )

    def _readout(self) -> Tensor:
        """y = 2 Re(C x) as a row vector for the real state, (D, H, S)."""
        C = self.C.double()
        return 2 * torch.cat((C[..., 0], -C[..., 1]), -1)

    def _eigenvalues(self) -> tuple[Tensor, Tensor, Tensor]:
        """Step size (H, 1), real (negative) and imaginary part of the diagonal (H, S/2).

        In float64: thousands of steps multiply an error of one.
        """
        dt = self.log_dt.double().exp()[:, None]
        return dt, -self.log_decay.double().exp(), self.frequency.double()

    @abstractmethod
    def _discretise(self) -> Discrete:
        """In float64."""

    @abstractmethod
    def _factors(self, discrete: Discrete, num_rows: int, num_columns: int):  # type: ignore[no-untyped-def]
        """C dA^i ``(H, a D, S)`` and dA^{ja} dB ``(H, S, b)``."""


class DPLRStateSpace(StateSpace):
    """A = diag(w) - P P*, bilinear step: the diagonal plus low-rank form of S4 (eq. 6 of S4M).

    The inverse in the bilinear step is Sherman and Morrison's; powers come by repeated squaring.
    """

    def __init__(self, dim: int, state_dim: int = 16, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(dim, state_dim, *args, **kwargs)
        self.P = nn.Parameter(_per_channel(hippo_legs(state_dim)[2], dim))

    def _discretise(self) -> Discrete:
        dt, decay, frequency = self._eigenvalues()
        g = 2.0 / dt
        # 1 / (g - w) = alpha + i beta, applied to r as blocks of 2x2 rotations
        distance = (g - decay).square() + frequency.square()
        alpha, beta = (g - decay) / distance, frequency / distance
        p_real, p_imag = self.P.double()[0].unbind(-1)
        b_real, b_imag = self.B.double()[0].unbind(-1)
        rotated = torch.cat((alpha * p_real - beta * p_imag, alpha * p_imag + beta * p_real), -1)
        row = 2 * torch.cat((alpha * p_real + beta * p_imag, alpha * p_imag - beta * p_real), -1)
        q = 2 * torch.cat((p_real, p_imag), -1)
        scale = 1.0 + (q * rotated).sum(-1, keepdim=True)
        low_rank = (rotated / scale)[:, :, None] * row[:, None, :]
        resolvent = _rotations(alpha, beta) - low_rank  # (g - A)^-1
        # (g - A)^-1 (g + A) = 2 g (g - A)^-1 - 1
        eye = torch.eye(resolvent.shape[-1], dtype=resolvent.dtype, device=resolvent.device)
        entry = 2 * (resolvent @ torch.cat((b_real, b_imag), -1)[..., None])[..., 0]
        return Discrete(2 * g[..., None] * resolvent - eye, entry, self._readout())

    def _factors(self, discrete, num_rows, num_columns):  # type: ignore[no-untyped-def]
        powers = _Powers(discrete.transition)
        rows = discrete.readout.transpose(0, 1)
        doublings = num_rows.bit_length() - 1
        for exponent in range(doublings):
            rows = torch.cat((rows, rows @ powers.square(exponent)), 1)
        columns = discrete.entry[..., None]
        for exponent in range((num_columns - 1).bit_length()):
            columns = torch.cat((columns, powers.square(doublings + exponent) @ columns), 2)
        return rows, columns[..., :num_columns]


class DiagonalStateSpace(StateSpace):
    """A = diag(w), zero-order hold: S4D. Powers are exponentials, evaluated directly."""

    def _discretise(self) -> Discrete:
        dt, decay, frequency = self._eigenvalues()
        growth, angle = dt * decay, dt * frequency
        real, imag = growth.exp() * angle.cos(), growth.exp() * angle.sin()
        # e^{dt w} - 1 without cancellation, and that divided by w
        real_less_one = growth.expm1() * angle.cos() - 2 * (angle / 2).sin().square()
        distance = decay.square() + frequency.square()
        hold_real = (real_less_one * decay + imag * frequency) / distance
        hold_imag = (imag * decay - real_less_one * frequency) / distance
        b_real, b_imag = self.B.double()[0].unbind(-1)
        entry = torch.cat(
            (hold_real * b_real - hold_imag * b_imag, hold_real * b_imag + hold_imag * b_real), -1
        )
        return Discrete(_rotations(real, imag), entry, self._readout())

    def _factors(self, discrete, num_rows, num_columns):  # type: ignore[no-untyped-def]
        dt, decay, frequency = self._eigenvalues()

        def powers(count: int, step: int) -> tuple[Tensor, Tensor]:
            """e^{dt w j step}, j < count: real and imaginary part (H, count, S/2)."""
            steps = step * torch.arange(count, dtype=torch.float64, device=dt.device)[:, None]
            growth = (steps * (dt * decay)[:, None]).exp()
            angle = steps * (dt * frequency)[:, None]
            return tuple((growth * part).to(self.dtype) for part in (angle.cos(), angle.sin()))

        real, imag = (part[:, :, None] for part in powers(num_rows, 1))
        left, right = discrete.readout.transpose(0, 1)[:, None].chunk(2, -1)
        rows = torch.cat((left * real + right * imag, right * real - left * imag), -1).flatten(1, 2)
        real, imag = powers(num_columns, num_rows)
        left, right = discrete.entry[:, None].chunk(2, -1)
        columns = torch.cat((left * real - right * imag, right * real + left * imag), -1)
        return rows, columns.transpose(1, 2)


STATE_SPACES = {"dplr": DPLRStateSpace, "diag": DiagonalStateSpace}


class _Powers:
    """Powers of matrices by repeated squaring."""

    def __init__(self, matrix: Tensor) -> None:
        self._squares = [matrix]

    def square(self, exponent: int) -> Tensor:
        """matrix^(2^exponent)."""
        while len(self._squares) <= exponent:
            self._squares.append(self._squares[-1] @ self._squares[-1])
        return self._squares[exponent]

    def power(self, exponent: int) -> Tensor:
        """matrix^exponent, exponent at least 1."""
        factors = [self.square(bit) for bit in range(exponent.bit_length()) if exponent >> bit & 1]
        product = factors[0]
        for factor in factors[1:]:
            product = product @ factor
        return product


def hippo_legs(state_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS in the basis where it is normal plus low rank.

    Returns:
        w, B, P, each (S/2,) complex: A = diag(w) - P P*, of every conjugate pair one member.
    """
    n = torch.arange(state_dim, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    P = (n + 0.5).sqrt()
    A = -torch.tril(root[:, None] * root, -1) - torch.diag(n + 1)
    skew = A + P[:, None] * P + 0.5 * torch.eye(state_dim, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(-1j * skew)  # skew = i (Hermitian)
    chosen = values < 0
    basis = vectors[:, chosen].conj().T
    w = torch.complex(torch.full_like(values[chosen], -0.5), values[chosen])
    return w, basis @ root.to(basis.dtype), basis @ P.to(basis.dtype)


def _per_channel(vector: Tensor, dim: int) -> Tensor:
    """(S/2,) complex -> (1, H, S/2, 2) real."""
    return torch.view_as_real(vector).float().repeat(1, dim, 1, 1)


def _rotations(real: Tensor, imag: Tensor) -> Tensor:
    """Multiplication by complex numbers (H, S/2) as matrices (H, S, S) for [Re x; Im x]."""
    diagonal, turn = torch.diag_embed(real), torch.diag_embed(imag)
    upper, lower = torch.cat((diagonal, -turn), -1), torch.cat((turn, diagonal), -1)
    return torch.cat((upper, lower), -2)
