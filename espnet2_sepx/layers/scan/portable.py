"""The scan in plain PyTorch for any device: blocks of sequences, chunks of steps.

Within a chunk the factors and inputs of all steps are computed at once, then one fused
multiply-add per step runs over them in place. Two buffers of a chunk are reused for everything, so
no tensor of size (B, L, N, D) ever exists. Backward computes a block's states anew: it keeps one
state per chunk of the block at hand and the inputs, nothing else.

Legend: B sequences, L steps, D channels, N states per channel; b sequences of a block, c steps of a
chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet2_sepx.layers.scan.inputs import ScanGrads, ScanInputs

LOG2_E = math.log2(math.e)
CHUNK = 8
"""Steps at a time. Longer chunks save calls, shorter ones stay in the cache."""
BUFFER_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Numbers in a buffer of a chunk, on which the block's size depends: 2 MB or 256 MB."""


def forward(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the states after the last step (B, N, D), outside of any graph."""
    y = torch.empty_like(inputs.u, memory_format=torch.contiguous_format)
    last = inputs.first_state()
    A = inputs.A * LOG2_E
    buffers = _buffers(inputs, 2)
    for block in _blocks(inputs):
        part = _Block(inputs, block, A)
        h = last[block]
        for chunk in _chunks(inputs.u.shape[1], inputs.reverse):
            _, H = part.states(chunk, h, *buffers)
            part.output(chunk, H, out=y[block, chunk])
            h.copy_(H[part.final])
        part.finish(y[block])
    return y, last


def backward(inputs: ScanInputs, grad: Tensor, grad_last: Tensor | None) -> ScanGrads:
    """Gradients for ``grad`` (B, L, D) and that of the last states (B, N, D)."""
    grads = _empty_grads(inputs, grad_last)
    A = inputs.A * LOG2_E
    chunks = list(_chunks(inputs.u.shape[1], inputs.reverse))
    buffers = _buffers(inputs, 3)
    first = inputs.first_state()
    for block in _blocks(inputs):
        part = _Block(inputs, block, A)
        bounds = [first[block]]
        for chunk in chunks[:-1]:
            _, H = part.states(chunk, bounds[-1], *buffers[:2])
            bounds.append(H[part.final].clone())
        gradients = part.gate_gradients(grad[block], grads, bounds, chunks, buffers)
        assert grads.h0 is not None
        carry = grads.h0[block]
        d_dt, d_dtu = torch.empty_like(part.dt), torch.empty_like(part.dt)
        for chunk, h in zip(reversed(chunks), reversed(bounds), strict=True):
            E, H = part.states(chunk, h, *buffers[:2])
            part.chunk_gradients(
                chunk, h, E, H, buffers[2], gradients[:, chunk], carry, d_dt, d_dtu, grads
            )
        part.input_gradients(gradients, d_dt, d_dtu, grads)
    grads.A = grads.A.to(inputs.A.dtype)
    return grads


def _empty_grads(inputs: ScanInputs, grad_last: Tensor | None) -> ScanGrads:
    def empty(x: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    def zeros(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.zeros_like(x)

    shape = (inputs.u.shape[0], *inputs.A.shape)
    carry = inputs.u.new_zeros(shape) if grad_last is None else grad_last.contiguous().clone()
    return ScanGrads(
        u=empty(inputs.u),
        dt=empty(inputs.dt),
        A=torch.zeros_like(inputs.A, memory_format=torch.contiguous_format),
        B=empty(inputs.B),
        C=empty(inputs.C),
        D=zeros(inputs.D),
        z=None if inputs.z is None else empty(inputs.z),
        dt_bias=zeros(inputs.dt_bias),
        h0=carry,
    )


def _block_size(inputs: ScanInputs) -> int:
    limit = BUFFER_NUMBERS.get(inputs.u.device.type, BUFFER_NUMBERS["cuda"])
    return max(1, min(inputs.u.shape[0], limit // (CHUNK * inputs.A.numel())))


def _blocks(inputs: ScanInputs) -> Iterator[slice]:
    size, batch = _block_size(inputs), inputs.u.shape[0]
    return (slice(at, min(at + size, batch)) for at in range(0, batch, size))


def _chunks(length: int, reverse: bool) -> Iterator[slice]:
    """Slices of steps in the order of the run."""
    starts = range(0, length, CHUNK)
    ordered = reversed(starts) if reverse else starts
    return (slice(at, min(at + CHUNK, length)) for at in ordered)


def _buffers(inputs: ScanInputs, count: int) -> list[Tensor]:
    size = CHUNK * _block_size(inputs) * inputs.A.numel()
    return [inputs.u.new_empty(size) for _ in range(count)]


class _Block:
    """Some sequences of a scan; all methods compute in the caller's buffers.

    Chunks are time first, (c, b, N, D), so that a step is contiguous.
    """

    def __init__(self, inputs: ScanInputs, block: slice, A: Tensor) -> None:
        self.inputs, self.block, self.A = inputs, block, A
        self.u, self.B, self.C = inputs.u[block], inputs.B[block], inputs.C[block]
        self.z = None if inputs.z is None else inputs.z[block]
        raw = inputs.dt[block]
        raw = raw if inputs.dt_bias is None else raw + inputs.dt_bias
        self.dt = F.softplus(raw) if inputs.dt_softplus else raw
        self.dtu = self.dt * self.u
        self.final = 0 if inputs.reverse else -1
        """Index of a chunk's last step in order of the run."""

    def _shaped(self, buffer: Tensor, chunk: slice) -> Tensor:
        shape = (chunk.stop - chunk.start, self.u.shape[0], *self.A.shape)
        return buffer[: math.prod(shape)].view(shape)

    def _order(self, chunk: slice) -> list[int]:
        order = list(range(chunk.stop - chunk.start))
        return order[::-1] if self.inputs.reverse else order

    def states(
        self, chunk: slice, h: Tensor, factors: Tensor, states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Factors exp(dt A) and states of a chunk (c, b, N, D), from the state ``h`` before it."""
        E, H = self._shaped(factors, chunk), self._shaped(states, chunk)
        torch.mul(self.dt[:, chunk].transpose(0, 1)[:, :, None], self.A, out=E).exp2_()
        torch.mul(
            self.dtu[:, chunk].transpose(0, 1)[:, :, None],
            self.B[:, chunk].transpose(0, 1)[..., None],
            out=H,
        )
        for i in self._order(chunk):
            H[i].addcmul_(E[i], h)
            h = H[i]
        return E, H

    def output(self, chunk: slice, H: Tensor, out: Tensor) -> None:
        """C . h of a chunk into ``out`` (b, c, D)."""
        weights = self.C[:, chunk].transpose(0, 1)[:, :, None]  # (c, b, 1, N)
        y = torch.bmm(weights.reshape(-1, 1, weights.shape[-1]), H.flatten(0, 1))
        out.copy_(y.view(H.shape[0], H.shape[1], -1).transpose(0, 1))

    def finish(self, y: Tensor) -> None:
        """Skip connection and gate, in place."""
        if self.inputs.D is not None:
            y.addcmul_(self.u, self.inputs.D)
        if self.z is not None:
            y.mul_(F.silu(self.z))

    def gate_gradients(
        self,
        grad: Tensor,
        grads: ScanGrads,
        bounds: list[Tensor],
        chunks: list[slice],
        buffers: list[Tensor],
    ) -> Tensor:
        """Gradient before the gate; fills in that of z, for which y is computed anew."""
        if self.z is None:
            return grad
        assert grads.z is not None
        y = torch.empty_like(self.dt)
        for chunk, h in zip(chunks, bounds, strict=True):
            self.output(chunk, self.states(chunk, h, *buffers[:2])[1], out=y[:, chunk])
        if self.inputs.D is not None:
            y.addcmul_(self.u, self.inputs.D)
        gate = torch.sigmoid(self.z)
        slope = gate * (1 + self.z * (1 - gate))
        torch.mul(grad * y, slope, out=grads.z[self.block])
        return grad * self.z * gate

    def chunk_gradients(
        self,
        chunk: slice,
        h: Tensor,
        E: Tensor,
        H: Tensor,
        buffer: Tensor,
        grad: Tensor,
        carry: Tensor,
        d_dt: Tensor,
        d_dtu: Tensor,
        grads: ScanGrads,
    ) -> None:
        """Run the adjoint recurrence G_t = gy_t C_t + exp(dt_(t+1) A) G_(t+1) through one chunk.

        ``carry`` (b, N, D) holds the product with G of the steps behind, and is replaced.
        """
        G, order = self._shaped(buffer, chunk), self._order(chunk)
        gy = grad.transpose(0, 1)  # (c, b, D)
        C, B = (x[:, chunk].transpose(0, 1) for x in (self.C, self.B))  # (c, b, N)
        dt, dtu = (x[:, chunk].transpose(0, 1) for x in (self.dt, self.dtu))
        torch.mul(gy[:, :, None], C[..., None], out=G)
        G[order[-1]] += carry
        for i, after in zip(order[-2::-1], order[:0:-1], strict=True):
            G[i].addcmul_(E[after], G[after])
        torch.mul(E[order[0]], G[order[0]], out=carry)

        def rows(x: Tensor) -> Tensor:
            return x.reshape(-1, *x.shape[2:])

        shape = gy.shape[:2]
        d_C = torch.bmm(rows(H), rows(gy)[..., None]).view(*shape, -1)
        d_B = torch.bmm(rows(G), rows(dtu)[..., None]).view(*shape, -1)
        grads.C[self.block, chunk] = d_C.transpose(0, 1)
        grads.B[self.block, chunk] = d_B.transpose(0, 1)
        d_input = torch.bmm(rows(B)[:, None], rows(G)).view(*shape, -1)
        d_dtu[:, chunk] = d_input.transpose(0, 1)
        E *= G
        E[order[0]] *= h
        for i, before in zip(order[1:], order[:-1], strict=True):
            E[i] *= H[before]  # E is now the gradient of dt A
        d_dt[:, chunk] = torch.mul(E, self.inputs.A, out=G).sum(2).transpose(0, 1)
        grads.A += torch.mul(E, dt[:, :, None], out=G).sum((0, 1))

    def input_gradients(self, grad: Tensor, d_dt: Tensor, d_dtu: Tensor, grads: ScanGrads) -> None:
        """From those of dt and dt u to those of u, dt, its bias and D."""
        d_u = torch.mul(d_dtu, self.dt, out=grads.u[self.block])
        if self.inputs.D is not None:
            assert grads.D is not None
            d_u.addcmul_(grad, self.inputs.D)
            grads.D += (grad * self.u).sum((0, 1))
        d_dt.addcmul_(d_dtu, self.u)
        if self.inputs.dt_softplus:
            d_dt *= -torch.expm1(-self.dt)  # sigmoid(x) = 1 - exp(-softplus(x))
        grads.dt[self.block] = d_dt
        if grads.dt_bias is not None:
            grads.dt_bias += d_dt.sum((0, 1))
