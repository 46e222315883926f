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

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from espnet2_sepx.profiling.cost import CONVENTIONS
from espnet2_sepx.profiling.figure import Figure
from espnet2_sepx.profiling.hooks import hook_figures
from espnet2_sepx.profiling.macs import plain_kernels
from espnet2_sepx.profiling.tracing import trace_figure


def figures(
    model: nn.Module,
    run: Callable[[Tensor], Any],
    mixture: Tensor,
    owned: Mapping[str, int] | None = None,
) -> dict[str, Figure]:
    """What each convention counts.

    Args:
        model: what ``run`` uses, in eval mode.
        run: from ``mixture`` to a sequence of tensors; executed twice.
        mixture: its input.
        owned: see ``hook_figures``.
    """
    with plain_kernels():
        found = hook_figures(model, lambda: run(mixture), owned)
        found["torchprofile"] = trace_figure(model, run, mixture)
    model.eval()  # what was kept now suits plain kernels only
    return {name: found[name] for name in CONVENTIONS}
