"""MACs as torchprofile counts them: from the graph of PyTorch's tracer (see ``conventions``)."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espnet2_sepx.profiling.figure import Figure, reason

Shapes = list[Any]
"""Of the inputs or outputs of one operator: list[int], None for what is no tensor."""
TraceRule = Callable[[Shapes, Shapes], int]


def _traced_product(inputs: Shapes, outputs: Shapes) -> int:
    """``linear`` and ``matmul``: rows by columns by the inner size."""
    left, right = inputs[0], inputs[1]
    if len(right) == 1:
        return math.prod(left)
    if len(left) == 1:
        return math.prod(right)
    return math.prod(outputs[0]) * left[-1]


def _traced_convolution(inputs: Shapes, outputs: Shapes) -> int:
    """A weight is read as (out, in, taps) if that fits the output, else as (in, out, taps)."""
    weight, out = inputs[1], outputs[0]
    channels = weight[1] if out[1] == weight[0] else weight[0]
    return math.prod(out) * channels * math.prod(weight[2:])


def _traced_lstm(inputs: Shapes, outputs: Shapes) -> int:
    out, last = outputs[0], outputs[1]
    hidden = last[-1]
    directions = out[-1] // hidden
    widths = [inputs[0][-1]] + [hidden * directions] * (last[0] // directions - 1)
    return out[0] * out[1] * directions * sum(4 * hidden * (width + hidden) for width in widths)


def _traced_attention(inputs: Shapes, outputs: Shapes) -> int:
    query, key, value = inputs[:3]
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _traced_size(inputs: Shapes, outputs: Shapes) -> int:
    return math.prod(outputs[0])


def _traced_norm(weight: int) -> TraceRule:
    """Free unless affine; ``weight`` is the position of the scale."""
    return lambda inputs, outputs: 0 if inputs[weight] is None else math.prod(outputs[0])


TORCHPROFILE: dict[str, TraceRule] = {
    "addmm": lambda inputs, outputs: math.prod(inputs[1]) * inputs[2][1],
    "addmv": lambda inputs, outputs: math.prod(inputs[1]),
    "bmm": lambda inputs, outputs: math.prod(inputs[0]) * inputs[1][2],
    "baddbmm": lambda inputs, outputs: math.prod(inputs[1]) * inputs[2][2],
    "linear": _traced_product,
    "matmul": _traced_product,
    "mul": _traced_size,
    "mul_": _traced_size,
    "_convolution": _traced_convolution,
    "batch_norm": _traced_norm(1),
    "instance_norm": _traced_norm(1),
    "layer_norm": _traced_norm(2),
    "group_norm": _traced_norm(2),
    **dict.fromkeys(
        [f"{kind}avg_pool{dim}d" for kind in ("", "adaptive_") for dim in (1, 2, 3)], _traced_size
    ),
    "mean": _traced_size,
    "leaky_relu": _traced_size,
    "upsample_bilinear2d": lambda inputs, outputs: 4 * math.prod(outputs[0]),
    "lstm": _traced_lstm,
    "scaled_dot_product_attention": _traced_attention,
}


class _Traced(nn.Module):
    """What the tracer needs: a module that contains the model."""

    def __init__(self, model: nn.Module, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, mixture: Tensor) -> list[Tensor]:
        return list(self.run(mixture))


def trace_figure(model: nn.Module, run: Callable[[Tensor], Any], mixture: Tensor) -> Figure:
    """Count in the graph of PyTorch's tracer.

    Args:
        model: what ``run`` uses.
        run: from ``mixture`` to a sequence of tensors; executed once, without gradients.
        mixture: its input.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings(), _scopes(model):
            warnings.simplefilter("ignore")  # about branches, which is documented above
            graph, _ = torch.jit._get_trace_graph(_Traced(model, run).eval(), (mixture,))
    except Exception as error:
        return Figure(problem=f"cannot be traced: {reason(error)}")
    by_module: dict[str, int] = defaultdict(int)
    for node in graph.nodes():
        namespace, _, operator = node.kind().partition("::")
        if namespace != "aten":
            continue
        if operator == "einsum":
            macs = _einsum(node)
        elif operator in TORCHPROFILE:
            shapes = ([_shape(v) for v in values] for values in (node.inputs(), node.outputs()))
            macs = TORCHPROFILE[operator](*shapes)
        else:
            continue
        by_module[node.scopeName().rpartition("/")[2]] += macs
    return Figure({path: macs for path, macs in by_module.items() if macs})


@contextmanager
def _scopes(model: nn.Module) -> Iterator[None]:
    """Let the tracer note the path of the module behind each operator, as scope ``outer/inner``."""
    torch.jit._trace._trace_module_map = {m: path for path, m in model.named_modules() if path}
    try:
        yield
    finally:
        torch.jit._trace._trace_module_map = None


def _shape(value: Any) -> list[int] | None:
    kind = value.type()
    return kind.sizes() if "Tensor" in kind.kind() else None


def _einsum(node: Any) -> int:
    """The product of all index sizes; nothing for an equation with an ellipsis."""
    equation, operands, *_ = node.inputs()
    text = equation.node().s("value")
    if "..." in text:
        return 0
    sizes: dict[str, int] = {}
    terms = text.replace(" ", "").partition("->")[0].split(",")
    for letters, operand in zip(terms, operands.node().inputs(), strict=True):
        sizes.update(zip(letters, operand.type().sizes(), strict=True))
    return math.prod(sizes.values())
