"""What the tools behind published MAC figures would have counted.

Papers of this field name one of three packages. None counts everything, each adds some elementwise
work; so their figures differ by their rules as much as by their models. The rules are re-created
here from the packages' behaviour (tests compare with the packages themselves), so that a printed
number can be derived again:

``ptflops`` (0.6.9, module hooks): standard layers when they are called as modules, biases and
    activations included, attention of ``nn.MultiheadAttention`` in full. Blind to functions
    (``F.linear``, ``einsum``, ``matmul``, fused attention) and to layer norms. Later versions add
    functions called by name and so count attention twice.
``thop`` (0.1.1, module hooks): standard layers without biases, layer norms; no attention at all.
    Counts a transposed convolution at its output, that is stride times too often.
``torchprofile`` (0.1.0, traced operators): products, fused attention, elementwise products and
    affine norms, functions included. Blind to GRUs, transforms and foreign kernels; a transposed
    convolution as ``thop``. Data-dependent branches are those of the traced run.

Two differences are wanted: a layer whose weights are used without calling the layer (as our fused
inference paths do) counts here as if it had been called; the packages would miss it, in this
implementation only. And a layer with two parents counts twice, as in ptflops, while thop's figure
for it grows with every run. A convention that cannot process a model has no figure but a reason.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from espnet2_sepx.profiling.cost import CONVENTIONS
from espnet2_sepx.profiling.macs import plain_kernels


@dataclass
class Figure:
    """MACs by module path of one convention, or why there are none."""

    by_module: dict[str, int] = field(default_factory=dict)
    problem: str | None = None

    @property
    def total(self) -> int | None:
        return None if self.problem else sum(self.by_module.values())


# A rule gets the layer, its first input (or all, for attention) and its output.
HookRule = Callable[[Any, tuple[Any, ...], Any], float]


def _size(inputs: tuple[Any, ...], out: Any) -> int:
    return inputs[0].numel()


def _layers(number: int, *names: str) -> list[type]:
    return [getattr(nn, f"{name}{dim}d") for name in names for dim in range(1, number + 1)]


CONVOLUTIONS = _layers(3, "Conv", "ConvTranspose")
RECURRENT = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}
"""With their numbers of gates."""


def figures(
    model: nn.Module,
    run: Callable[[Tensor], Any],
    mixture: Tensor,
    owned: Mapping[str, int] | None = None,
) -> dict[str, Figure]:
    """What each convention counts.

    Args:
        model: what ``run`` uses, in eval mode.
        run: from ``mixture`` to a sequence of tensors; executed once per convention.
        mixture: its input.
        owned: see ``hook_figure``.
    """
    with plain_kernels():
        found = {name: hook_figure(name, model, lambda: run(mixture), owned) for name in HOOKED}
        found["torchprofile"] = trace_figure(model, run, mixture)
    model.eval()  # what was kept now suits plain kernels only
    return {name: found[name] for name in CONVENTIONS}


# ---- ptflops -------------------------------------------------------------------------------------


def _ptflops_convolution(layer: Any, inputs: tuple[Any, ...], out: Tensor) -> int:
    taps = math.prod(layer.kernel_size) * layer.in_channels // layer.groups
    return out.numel() * (taps + (layer.bias is not None))


def _ptflops_linear(layer: Any, inputs: tuple[Any, ...], out: Tensor) -> int:
    bias = layer.out_features if layer.bias is not None else 0  # once, not per position
    return inputs[0].numel() * layer.out_features + bias


def _ptflops_norm(layer: Any, inputs: tuple[Any, ...], out: Tensor) -> int:
    return inputs[0].numel() * (2 if layer.affine else 1)


_PTFLOPS_GATE_WORK = {nn.RNN: 1, nn.GRU: 7, nn.LSTM: 10}


def _ptflops_recurrent(layer: Any, inputs: tuple[Any, ...], out: Any) -> int:
    macs = 0
    for number in range(layer.num_layers):
        names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layer.bias else [])]
        macs += sum(getattr(layer, f"{name}_l{number}").numel() for name in names)
        macs += _PTFLOPS_GATE_WORK[type(layer)] * layer.hidden_size
    positions = inputs[0].shape[0] * inputs[0].shape[1]
    return macs * positions * (2 if layer.bidirectional else 1)


def _ptflops_attention(layer: Any, inputs: tuple[Any, ...], out: Any) -> int:
    query, key, value = inputs[:3]
    batch, length = (0, 1) if layer.batch_first else (1, 0)
    queries, keys, values = (x.shape[length] for x in (query, key, value))
    width, value_width = query.shape[2], value.shape[2]
    macs = queries * width  # scaling
    macs += sum(x.shape[length] * x.shape[2] ** 2 for x in (query, key, value))
    if layer.in_proj_bias is not None:
        macs += (queries + keys + values) * width
    heads = layer.num_heads
    macs += heads * queries * keys * (width // heads + 1 + value_width // heads)
    macs += queries * value_width * (value_width + 1)
    return macs * query.shape[batch]


PTFLOPS: dict[type, HookRule] = {
    **dict.fromkeys(CONVOLUTIONS, _ptflops_convolution),
    **dict.fromkeys(
        [nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6, nn.GELU],
        lambda layer, inputs, out: out.numel(),
    ),
    **dict.fromkeys(
        _layers(3, "MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool"),
        lambda layer, inputs, out: inputs[0].numel(),
    ),
    **dict.fromkeys([*_layers(3, "BatchNorm", "InstanceNorm"), nn.GroupNorm], _ptflops_norm),
    nn.Linear: _ptflops_linear,
    nn.Upsample: lambda layer, inputs, out: out[0].numel(),
    **dict.fromkeys(RECURRENT, _ptflops_recurrent),
    nn.MultiheadAttention: _ptflops_attention,
}


# ---- thop ----------------------------------------------------------------------------------------


def _thop_convolution(layer: Any, inputs: tuple[Any, ...], out: Tensor) -> int:
    return out.numel() * (inputs[0].shape[1] // layer.groups) * math.prod(layer.kernel_size)


def _thop_norm(layer: Any, inputs: tuple[Any, ...], out: Tensor) -> int:
    affine = getattr(layer, "affine", False) or getattr(layer, "elementwise_affine", False)
    return inputs[0].numel() * (4 if affine else 2)


def _thop_cell(layer: Any, width: int) -> int:
    """One step of one direction of one layer with inputs of this width."""
    hidden, gates = layer.hidden_size, RECURRENT[type(layer)]
    gate = hidden * (width + hidden) + hidden * (3 if layer.bias else 1)
    return gates * gate + {1: 0, 3: 4, 4: 4}[gates] * hidden


def _thop_recurrent(layer: Any, inputs: tuple[Any, ...], out: Any) -> int:
    signal = inputs[0]
    if isinstance(signal, PackedSequence):
        positions = int(signal.batch_sizes.max()) * len(signal.batch_sizes)
    else:
        positions = signal.shape[0] * signal.shape[1]
    directions = 2 if layer.bidirectional else 1
    deeper = (layer.num_layers - 1) * _thop_cell(layer, directions * layer.hidden_size)
    return positions * directions * (_thop_cell(layer, layer.input_size) + deeper)


def _thop_softmax(layer: Any, inputs: tuple[Any, ...], out: Tensor) -> int:
    return 3 * out.numel() - out.numel() // out.shape[layer.dim]


def _thop_adaptive_pool(layer: Any, inputs: tuple[Any, ...], out: Tensor) -> float:
    window = math.prod(inputs[0].shape[2:]) / math.prod(out.shape[2:])
    return (window + 1) * out.numel()


_THOP_UPSAMPLING = {"nearest": 1, "linear": 5, "bilinear": 11, "bicubic": 259}

THOP: dict[type, HookRule] = {
    **dict.fromkeys(CONVOLUTIONS, _thop_convolution),
    **dict.fromkeys([*_layers(3, "BatchNorm", "InstanceNorm"), nn.LayerNorm], _thop_norm),
    nn.PReLU: lambda layer, inputs, out: inputs[0].numel(),
    nn.Softmax: _thop_softmax,
    **dict.fromkeys(_layers(3, "AvgPool"), lambda layer, inputs, out: out.numel()),
    **dict.fromkeys(_layers(3, "AdaptiveAvgPool"), _thop_adaptive_pool),
    nn.Linear: lambda layer, inputs, out: layer.in_features * out.numel(),
    nn.Upsample: lambda layer, inputs, out: _THOP_UPSAMPLING.get(layer.mode, 0) * out.numel(),
    **dict.fromkeys(RECURRENT, _thop_recurrent),
}

HOOKED = {"ptflops": PTFLOPS, "thop": THOP}


def hook_figure(
    convention: str,
    model: nn.Module,
    run: Callable[[], Any],
    owned: Mapping[str, int] | None = None,
) -> Figure:
    """Count by module hooks.

    Args:
        convention: a key of ``HOOKED``.
        model: what ``run`` uses.
        run: executed once, without gradients.
        owned: MACs of products with the weights of a layer, by its path; counted for layers that
            the convention knows and that were not called.
    """
    rules = HOOKED[convention]
    work: dict[int, float] = defaultdict(float)

    def hook(layer: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        work[id(layer)] += rules[type(layer)](layer, (*args, *kwargs.values()), out)

    layers = [layer for layer in model.modules() if type(layer) in rules]
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            run()
    except Exception as error:
        return Figure(problem=_reason(error))
    finally:
        for handle in handles:
            handle.remove()
    counted: dict[str, int] = {}

    def visit(module: nn.Module, path: str) -> None:
        """A known layer speaks for all below it; a layer with two parents counts twice."""
        if type(module) in rules:
            macs = work.get(id(module))
            counted[path] = int((owned or {}).get(path, 0) if macs is None else macs)
            return
        for name, child in module.named_children():
            visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    return Figure({path: macs for path, macs in counted.items() if macs})


# ---- torchprofile --------------------------------------------------------------------------------

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
        return Figure(problem=f"cannot be traced: {_reason(error)}")
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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
