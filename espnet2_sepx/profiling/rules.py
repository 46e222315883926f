"""Multiply-accumulates (MACs) of one executed PyTorch operator: the rule table.

Two kinds of work are told apart, and each has its own table.

*Products* multiply **and** accumulate: matrix products, convolutions, recurrent layers, attention,
Fourier transforms, products of two complex numbers. They make up the columns ``all`` and
``weights``.
*Elementwise* work is a lone multiplication or division per element: gates, masks, scalings,
normalisations. It has a column of its own, since published counts leave it out.

Conventions, all of them tested against closed formulas:

* a product of an (m, k) by a (k, n) matrix is m k n MACs; biases are free;
* a convolution visits every output position with every tap, padding included; a transposed one
  visits every input position with every tap;
* one complex multiply-accumulate is 4 real ones, one real times complex is 2;
* a complex Fourier transform of n points is the n/2 log2(n) butterflies of the radix-2 algorithm,
  each with one complex product: 2 n log2(n) MACs; a real-input or real-output one is half of it.
  Other sizes use the same formula, rounded up;
* attention masks do not save work: the causal half is counted like the full square.

A new operator gets a rule with ``@rule("namespace.name")``. Raise ``RULES_VERSION`` when a figure
can change, so that no table mixes the two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

RULES_VERSION = "2"


@dataclass(frozen=True)
class Product:
    """Work found in one operator call.

    Attributes:
        macs: real multiply-accumulates.
        operands: the tensors multiplied with each other; if one of them derives from a parameter
            the work belongs to ``weights``. Empty for work without weights by definition (a
            transform).
    """

    macs: int
    operands: tuple[Tensor, ...] = ()


Rule = Callable[[Sequence[Any], dict[str, Any], Any], list[Product]]

PRODUCT_RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register the decorated rule for operators named ``namespace.name``.

    It holds for every overload, and for the in-place variant ``namespace.name_``.

    A rule gets the positional arguments, the keyword arguments and the result of the call.
    """

    def register(function: Rule) -> Rule:
        for operator in operators:
            if operator in PRODUCT_RULES:
                raise ValueError(f"operator {operator} already has a rule")
            PRODUCT_RULES[operator] = function
        return function

    return register


def _real_macs(*operands: Tensor) -> int:
    """Real multiply-accumulates in one product of two numbers of these types."""
    return 2 ** sum(operand.is_complex() for operand in operands)


def _matrix_product(left: Tensor, right: Tensor) -> list[Product]:
    """(..., m, k) by (..., k, n), equal leading sizes; vectors have m or n of one."""
    columns = right.shape[-1] if right.dim() > 1 else 1
    return [Product(left.numel() * columns * _real_macs(left, right), (left, right))]


@rule("aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.vdot")
def _mm(args, kwargs, out):
    return _matrix_product(args[0], args[1])


@rule("aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv", "aten._addmm_activation")
def _addmm(args, kwargs, out):
    return _matrix_product(args[1], args[2])


@rule("aten.addr")
def _addr(args, kwargs, out):
    return [Product(out.numel() * _real_macs(args[1], args[2]), (args[1], args[2]))]


@rule("mkldnn._linear_pointwise")
def _onednn_linear(args, kwargs, out):
    """Input (..., k), weight (n, k), perhaps something to add between the two."""
    signal, weight = args[0], args[1] if isinstance(args[3], str) else args[2]
    return [Product(out.numel() * signal.shape[-1], (signal, weight))]


@rule("aten._grouped_mm")
def _grouped_mm(args, kwargs, out):
    """Rows of a (m, k) matrix, each by the (k, n) matrix of its group."""
    left, right = args[0], args[1]
    if left.dim() != 2 or right.dim() != 3:
        raise NotImplementedError("grouped products of other layouts than (m, k) by (g, k, n)")
    return _matrix_product(left, right)


@rule("aten.convolution", "aten._convolution")
def _convolution(args, kwargs, out):
    """Weights are (out, in/groups, taps...), transposed ones (in, out/groups, taps...)."""
    signal, weight = args[0], args[1]
    transposed = args[6]
    positions = (signal if transposed else out).shape[2:]
    macs = signal.shape[0] * math.prod(positions) * weight.numel()
    return [Product(macs * _real_macs(signal, weight), (signal, weight))]


@rule("aten.mkldnn_rnn_layer")
def _mkldnn_rnn_layer(args, kwargs, out):
    """One direction of one LSTM layer on a CPU: input (T, B, I), weights (4H, I) and (4H, H)."""
    signal, input_weight, hidden_weight = args[0], args[1], args[2]
    steps = signal.shape[0] * signal.shape[1]
    return [
        Product(steps * input_weight.numel(), (signal, input_weight)),
        Product(steps * hidden_weight.numel(), (hidden_weight,)),
    ]


@rule(
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
)
def _attention(args, kwargs, out):
    """Query (..., L, D), key (..., S, D), value (..., S, V): scores, then weighted values."""
    query, key, value = args[0], args[1], args[2]
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    return [
        Product(pairs * query.shape[-1], (query, key)),
        Product(pairs * value.shape[-1], (value,)),
    ]


@rule("espnet2_sepx.selective_scan")
def _selective_scan(args, kwargs, out):
    """Per step, channel and state: dt A, factor times state, dt u times B, C times state count
    three MACs; per step and channel dt u and D u."""
    u, A = args[0], args[2]
    return [Product(u.numel() * (3 * A.shape[0] + 2))]


@rule("espnet2_sepx.causal_conv_silu")
def _causal_conv_silu(args, kwargs, out):
    """Depthwise: input (B, L, D), weight (K, D)."""
    signal, weight = args[0], args[1]
    return [Product(signal.numel() * weight.shape[0], (signal, weight))]


@rule("espnet2_sepx.route_to_best")
def _route_to_best(args, kwargs, out):
    """Scores of E experts (E, N) for tokens (n, N)."""
    tokens, router = args[0], args[1]
    return [Product(tokens.shape[0] * router.numel(), (tokens, router))]


def fft_macs(points: int, transforms: int, real: bool) -> int:
    """MACs of Fourier transforms of ``points`` points each, by the convention above."""
    if points <= 1:
        return 0
    return math.ceil((1 if real else 2) * points * math.log2(points)) * transforms


@rule("aten._fft_r2c", "aten._fft_c2r", "aten._fft_c2c")
def _fft(args, kwargs, out):
    """One transform over the axes in ``args[1]``; the longer side has the number of points."""
    signal, axes = args[0], args[1]
    real = not (signal.is_complex() and out.is_complex())
    whole = out if signal.is_complex() else signal  # a half spectrum has fewer points
    points = math.prod(whole.shape[axis] for axis in axes)
    return [Product(fft_macs(points, whole.numel() // max(points, 1), real))]


@rule("aten.mul")
def _mul(args, kwargs, out):
    """Complex by complex: a real product of sums. Everything else is elementwise work."""
    left, right = args[0], args[1]
    if isinstance(right, Tensor) and left.is_complex() and right.is_complex():
        return [Product(4 * out.numel(), (left, right))]
    return []


def _per_element(count: int) -> Callable[[Sequence[Any], Any], int]:
    def work(args, out):
        result = out if isinstance(out, Tensor) else out[0]
        return count * result.numel() * (2 if result.is_complex() else 1)

    return work


def _mul_elements(args, out):
    if isinstance(args[1], Tensor) and args[0].is_complex() and args[1].is_complex():
        return 0  # a product, see above
    return _per_element(1)(args, out)


def _mixture_elements(args, out):
    """The scaling of the softmax, and that of every output by the probability of its expert."""
    tokens, router = args[0], args[1]
    return tokens.shape[0] * (router.shape[0] + tokens.shape[1])


def _lstm_gates(args, out):
    """Three gate products per unit and step; the hidden weight (4H, H) gives the width."""
    return 3 * args[0].shape[0] * args[0].shape[1] * args[2].shape[1]


ELEMENTWISE_RULES: dict[str, Callable[[Sequence[Any], Any], int]] = {
    "aten.mul": _mul_elements,
    **{f"aten.{name}": _per_element(1) for name in ("div", "addcmul", "addcdiv", "lerp", "square")},
    "aten._softmax": _per_element(1),
    # Squares for the variance and one scaling.
    "aten.native_layer_norm": _per_element(2),
    "aten.native_group_norm": _per_element(2),
    "aten.native_batch_norm": _per_element(1),  # in eval mode the variance is a constant
    "aten._native_batch_norm_legit_no_training": _per_element(1),
    "aten.mkldnn_rnn_layer": _lstm_gates,
    "espnet2_sepx.route_to_best": _mixture_elements,
}

CREATIONS = frozenset({"aten.lift_fresh", "aten.lift_fresh_copy"})
LOOKUPS = frozenset(
    f"aten.{name}"
    for name in ("index", "index_select", "gather", "embedding", "take", "take_along_dim")
)

# ATen operators that multiply and accumulate, by a part of their names.
_PRODUCT_NAMES = re.compile(
    r"(?<!a)mm|mv$|dot|addr$|conv|linear$|linalg|attention|transformer|rnn|lstm|gru|fft|cdist|trilinear"
    r"|grid_sampler|cholesky|solve|(?<![a-z])lu_|qr$"
)
_HARMLESS = frozenset({"aten.linalg_vector_norm", "aten._linalg_check_errors"})


def is_opaque(operator: str) -> bool:
    """Whether an operator without a rule may hide products: kernels of others, and known ATen ones.

    Their names are reported, so that a total that misses work never looks complete.
    """
    if operator in PRODUCT_RULES or operator in _HARMLESS:
        return False
    namespace, _, name = operator.partition(".")
    return namespace not in ("aten", "prim", "prims") or bool(_PRODUCT_NAMES.search(name))
