"""MACs as ptflops and thop count them: by hooks on modules (see ``conventions``)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from espnet2_sepx.profiling.figure import Figure, reason

# A rule gets the layer, its first input (or all, for attention) and its output.
HookRule = Callable[[Any, tuple[Any, ...], Any], float]


def _layers(number: int, *names: str) -> list[type]:
    return [getattr(nn, f"{name}{dim}d") for name in names for dim in range(1, number + 1)]


CONVOLUTIONS = _layers(3, "Conv", "ConvTranspose")
RECURRENT = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}
"""With their numbers of gates."""


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


def hook_figures(
    model: nn.Module, run: Callable[[], Any], owned: Mapping[str, int] | None = None
) -> dict[str, Figure]:
    """Count by module hooks, all such conventions in one run.

    Args:
        model: what ``run`` uses.
        run: executed once, without gradients.
        owned: MACs of products with the weights of a layer, by its path; counted for layers that
            a convention knows and that were not called.
    """
    work: dict[str, dict[int, float]] = {name: defaultdict(float) for name in HOOKED}
    problems: dict[str, str] = {}

    def hook(layer: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        for name, rules in HOOKED.items():
            if type(layer) in rules:
                try:
                    macs = rules[type(layer)](layer, (*args, *kwargs.values()), out)
                except Exception as error:  # an input that the package does not expect either
                    problems[name] = reason(error)
                else:
                    work[name][id(layer)] += macs

    known = {cls for rules in HOOKED.values() for cls in rules}
    layers = [layer for layer in model.modules() if type(layer) in known]
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            run()
    except Exception as error:
        problems = dict.fromkeys(HOOKED, reason(error))
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Figure(problem=problems[name])
        if name in problems
        else Figure(_by_module(model, HOOKED[name], work[name], owned or {}))
        for name in HOOKED
    }


def _by_module(
    model: nn.Module,
    rules: Mapping[type, HookRule],
    work: Mapping[int, float],
    owned: Mapping[str, int],
) -> dict[str, int]:
    """A known layer speaks for all below it; a layer with two parents counts twice."""
    counted: dict[str, int] = {}

    def visit(module: nn.Module, path: str) -> None:
        if type(module) in rules:
            macs = int(work.get(id(module), owned.get(path, 0)))
            if macs:
                counted[path] = macs
            return
        for name, child in module.named_children():
            visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    return counted
