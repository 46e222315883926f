"""The scan, and the convolution in front of it, in compiled code for the CPU (``native/scan.h``).

float32 only. Passes pointers; rows of ``u``, ``dt``, ``z``, ``B`` and ``C`` may lie apart, as they
do in slices of wider tensors, and are read in place.

Legend: B sequences, L steps, D channels, N states per channel, K taps.
"""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from espnet2_sepx.layers.native import build
from espnet2_sepx.layers.native.binding import Int, Pointer, address, try_out
from espnet2_sepx.layers.scan.inputs import ScanGrads, ScanInputs

LOG2_E = math.log2(math.e)
MAX_STATE = 64
MAX_TAPS = 8


class _Scan(ctypes.Structure):
    _fields_ = [
        *((name, Pointer) for name in ("u", "dt", "B", "C", "z", "A", "D", "bias")),
        *((f"{name}_row", Int) for name in ("u", "dt", "B", "C", "z", "y")),
        *((name, Int) for name in ("batch", "length", "width", "state")),
        *((name, Int) for name in ("softplus", "reverse", "threads")),
    ]


class _Grads(ctypes.Structure):
    _fields_ = [
        ("grad", Pointer),
        ("grad_row", Int),
        *((name, Pointer) for name in ("du", "ddt", "dz", "dB", "dC", "dstate")),
        *((name, Pointer) for name in ("dA", "dD", "dbias", "bounds")),
    ]


class _Conv(ctypes.Structure):
    _fields_ = [
        *((name, Pointer) for name in ("x", "weight", "bias", "before")),
        *((name, Int) for name in ("x_row", "batch", "length", "width", "taps")),
        *((name, Int) for name in ("reverse", "threads")),
    ]


class Kernel:
    """The functions of one build of the library."""

    def __init__(self, isa: str) -> None:
        library = build.load(isa)
        self._scan_forward = library.sepx_scan_forward
        self._scan_backward = library.sepx_scan_backward
        self._conv_forward = library.sepx_conv_forward
        self._conv_backward = library.sepx_conv_backward
        library.sepx_back_tile.restype = Int
        self._back_tile = int(library.sepx_back_tile())

    # ---- scan ------------------------------------------------------------------------------

    def forward(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """y (B, L, D) and the states after the last step (B, N, D), outside of any graph."""
        y = inputs.u.new_empty(inputs.u.shape)
        last = inputs.first_state()
        scan, kept = _scan_struct(inputs)
        self._scan_forward(ctypes.byref(scan), _pointer(last), _pointer(y))
        del kept
        return y, last

    def backward(self, inputs: ScanInputs, grad: Tensor, grad_last: Tensor | None) -> ScanGrads:
        """Gradients for ``grad`` (B, L, D) and that of the last states (B, N, D)."""
        scan, kept = _scan_struct(inputs)
        _, length, width = inputs.u.shape
        state, threads = inputs.A.shape[0], scan.threads
        new = inputs.u.new_empty
        tiles = -(-length // self._back_tile)
        d_A, d_D, d_bias = (inputs.u.new_zeros(threads, rows, width) for rows in (state, 1, 1))
        first = inputs.first_state()
        carry = torch.zeros_like(first) if grad_last is None else grad_last.contiguous().clone()
        grads = ScanGrads(
            u=new(inputs.u.shape),
            dt=new(inputs.u.shape),
            A=d_A,
            B=new(inputs.B.shape),
            C=new(inputs.C.shape),
            D=None,
            z=None if inputs.z is None else new(inputs.u.shape),
            dt_bias=None,
            h0=carry,
        )
        grad = _rows(grad)
        bounds = new(threads, tiles, state, width)
        struct = _Grads(
            grad=_pointer(grad),
            grad_row=_row(grad),
            du=_pointer(grads.u),
            ddt=_pointer(grads.dt),
            dz=_pointer(grads.z),
            dB=_pointer(grads.B),
            dC=_pointer(grads.C),
            dstate=_pointer(carry),
            dA=_pointer(d_A),
            dD=_pointer(d_D),
            dbias=_pointer(d_bias),
            bounds=_pointer(bounds),
        )
        self._scan_backward(ctypes.byref(scan), ctypes.byref(struct), _pointer(first))
        del kept
        grads.A = d_A.sum(0)
        grads.D = None if inputs.D is None else d_D.sum((0, 1))
        grads.dt_bias = None if inputs.dt_bias is None else d_bias.sum((0, 1))
        return grads

    # ---- convolution -----------------------------------------------------------------------

    def conv_forward(
        self, x: Tensor, weight: Tensor, bias: Tensor, before: Tensor | None, reverse: bool
    ) -> Tensor:
        """silu(conv(x)) (B, L, D) of ``x`` (B, L, D), ``weight`` (K, D), ``before`` (B, K-1, D)."""
        y = x.new_empty(x.shape)
        conv, kept = _conv_struct(x, weight, bias, before, reverse)
        self._conv_forward(ctypes.byref(conv), _pointer(y))
        del kept
        return y

    def conv_backward(
        self, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias."""
        conv, kept = _conv_struct(x, weight, bias, None, reverse)
        d_x, grad = x.new_empty(x.shape), _rows(grad)
        d_weight = x.new_zeros(conv.threads, *weight.shape)
        d_bias = x.new_zeros(conv.threads, *bias.shape)
        self._conv_backward(
            ctypes.byref(conv),
            _pointer(grad),
            Int(_row(grad)),
            _pointer(d_x),
            _pointer(d_weight),
            _pointer(d_bias),
        )
        del kept
        return d_x, d_weight.sum(0), d_bias.sum(0)


@functools.lru_cache(maxsize=1)
def probe() -> tuple[Kernel | None, str]:
    """The kernel for this processor after a trial, or None; and the reason in words."""
    return try_out(Kernel, _agrees)


def _agrees(kernel: Kernel) -> bool:
    """A trial on numbers with a known answer: two steps, h = u, then h e^-1 + u."""
    ones = torch.ones(1, 2, 3)
    inputs = ScanInputs(ones, ones, -torch.ones(1, 3), ones[..., :1], ones[..., :1])
    y, _ = kernel.forward(inputs)
    expected = torch.tensor([1.0, 1.0 + math.exp(-1.0)])[None, :, None].expand(1, 2, 3)
    return torch.allclose(y, expected, atol=1e-6)


def _rows(x: Tensor) -> Tensor:
    """``x`` (B, L, D), copied unless its rows can be read in place."""
    batch, length, width = x.shape
    adjacent = width == 1 or x.stride(2) == 1
    evenly = 1 in (batch, length) or x.stride(0) == length * x.stride(1)
    return x if adjacent and evenly else x.contiguous()


def _row(x: Tensor) -> int:
    """Distance of two rows of what ``_rows`` returns (dimensions of one have any stride)."""
    batch, length, width = x.shape
    return x.stride(1) if length > 1 else x.stride(0) if batch > 1 else width


def _pointer(x: Tensor | None) -> Pointer:
    return Pointer(address(x))


def _scan_struct(inputs: ScanInputs) -> tuple[_Scan, list[Tensor]]:
    """The struct, and the tensors that must outlive it."""
    batch, length, width = inputs.u.shape
    rows = {name: _rows(getattr(inputs, name)) for name in ("u", "dt", "B", "C")}
    if inputs.z is not None:
        rows["z"] = _rows(inputs.z)
    vectors = {"A": (inputs.A * LOG2_E).contiguous()}
    for name, tensor in (("D", inputs.D), ("bias", inputs.dt_bias)):
        if tensor is not None:
            vectors[name] = tensor.contiguous()
    struct = _Scan(
        y_row=width,
        batch=batch,
        length=length,
        width=width,
        state=inputs.A.shape[0],
        softplus=inputs.dt_softplus,
        reverse=inputs.reverse,
        threads=max(1, min(batch, torch.get_num_threads())),
    )
    for name, tensor in rows.items():
        setattr(struct, f"{name}_row", _row(tensor))
    for name, tensor in (rows | vectors).items():
        setattr(struct, name, tensor.data_ptr())
    return struct, [*rows.values(), *vectors.values()]


def _conv_struct(
    x: Tensor, weight: Tensor, bias: Tensor, before: Tensor | None, reverse: bool
) -> tuple[_Conv, list[Tensor]]:
    x, weight, bias = _rows(x), weight.contiguous(), bias.contiguous()
    before = None if before is None else before.contiguous()
    batch, length, width = x.shape
    struct = _Conv(
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        before=0 if before is None else before.data_ptr(),
        x_row=_row(x),
        batch=batch,
        length=length,
        width=width,
        taps=weight.shape[0],
        reverse=reverse,
        threads=max(1, min(batch, torch.get_num_threads())),
    )
    return struct, [t for t in (x, weight, bias, before) if t is not None]
