"""Counts the multiply-accumulates that a model executes, by module.

The counter sees every operator that reaches PyTorch's dispatcher, so work that a model skips
(experts that no token chose) is not counted, and functional products (``F.linear``, ``einsum``,
attention) are. What one operator costs is in ``rules``; whether a factor derives from a parameter
is in ``provenance``.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from espnet2_sepx.layers import kernels
from espnet2_sepx.profiling.provenance import Kind, Provenance
from espnet2_sepx.profiling.rules import (
    CREATIONS,
    ELEMENTWISE_RULES,
    LOOKUPS,
    PRODUCT_RULES,
    Product,
    is_opaque,
)
from espnet2_sepx.profiling.tree import Work


@dataclass
class Count:
    """Work by (module path, operator), and operators that may hide work without a rule."""

    work: dict[tuple[str, str], Work] = field(default_factory=lambda: defaultdict(Work))
    uncounted: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> Work:
        return _sum(self.work.values())

    def by_module(self) -> dict[str, Work]:
        return self._group(0)

    def by_operator(self) -> dict[str, Work]:
        return self._group(1)

    def _group(self, index: int) -> dict[str, Work]:
        groups: dict[str, Work] = defaultdict(Work)
        for key, work in self.work.items():
            groups[key[index]] += work
        return dict(groups)


def _sum(items) -> Work:
    total = Work()
    for item in items:
        total += item
    return total


def count_macs(model: nn.Module, run: Callable[[], Any]) -> Count:
    """Execute ``run`` in eval mode and count what it costs; see ``count_each``."""
    return count_each(model, [run])[0]


def count_each(model: nn.Module, runs: Iterable[Callable[[], Any]]) -> list[Count]:
    """Execute functions in eval mode and count what each costs.

    The first runs twice and its second run counts: what a model computes once and keeps (folded
    normalisation, tables) is not a cost per second of audio.

    Args:
        model: the module that ``runs`` use. It is set to training and back to evaluation first,
            which drops what it kept from earlier runs: the origin of such a tensor is unknown.
        runs: functions without arguments; executed without gradients.
    """
    model.train()
    model.eval()
    counter = _Counter(model)
    counts: list[Count] = []
    with plain_kernels(), torch.no_grad(), counter:
        for run in runs:
            if not counts:
                run()
            counter.count = Count()
            run()
            counts.append(counter.count)
    model.eval()  # what was kept now suits plain kernels only
    return counts


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Count the model, not the machine: without kernels that hide products or add some.

    PyTorch's fused encoder layer is one operator; our oneDNN route pads its operands.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    onednn = os.environ.get(kernels.ONEDNN_VARIABLE, "1")
    torch.backends.mha.set_fastpath_enabled(False)
    os.environ[kernels.ONEDNN_VARIABLE] = "0"
    kernels.onednn_linear.cache_clear()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        os.environ[kernels.ONEDNN_VARIABLE] = onednn
        kernels.onednn_linear.cache_clear()


class _Counter(TorchDispatchMode):
    """The dispatch mode behind ``count_macs``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.count = Count()
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._provenance = Provenance(model)

    def _path(self) -> str:
        """Path of the module whose code is running: the innermost frame with one as ``self``.

        Forward hooks would miss modules that are used by other methods than ``forward``.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code.co_argcount and code.co_varnames[0] == "self":
                path = self._paths.get(id(frame.f_locals.get("self")))
                if path is not None:
                    return path
            frame = frame.f_back
        return ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operator = _name(func)
        if operator not in PRODUCT_RULES:
            # An operator made of others (in inference mode) arrives whole; look inside.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        out = func(*args, **kwargs)
        self._account(func, operator, args, kwargs, out)
        return out

    def _account(self, func, operator: str, args, kwargs, out) -> None:
        products = PRODUCT_RULES[operator](args, kwargs, out) if operator in PRODUCT_RULES else []
        for product in products:
            self._add(operator, product)
        if operator in ELEMENTWISE_RULES:
            work = Work(elementwise=ELEMENTWISE_RULES[operator](args, out))
            self.count.work[self._path(), operator] += work
        if is_opaque(operator):
            self.count.uncounted[operator] += 1
        self._provenance.record(
            inputs=_tensors((args, kwargs)),
            outputs=_tensors(out),
            written=_written(func, args, kwargs),
            kind=_kind(operator, products),
        )

    def _add(self, operator: str, product: Product) -> None:
        path = self._path()
        owner = self._provenance.owner(product.operands)
        if owner is not None and (not path or owner.startswith(f"{path}.")):
            path = owner  # a parent that uses the weights of its child directly
        weights = 0 if owner is None else product.macs
        self.count.work[path, operator] += Work(weights=weights, all=product.macs)


def _name(func) -> str:
    """``namespace.name`` without the overload; in-place variants take their arguments alike."""
    return func._schema.name.replace("::", ".").removesuffix("_")


def _kind(operator: str, products: list[Product]) -> Kind:
    if products:
        return Kind.PRODUCT
    if operator in LOOKUPS:
        return Kind.LOOKUP
    return Kind.CREATION if operator in CREATIONS else Kind.OTHER


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(func, args, kwargs) -> list[Tensor]:
    """The arguments that an operator changes, from its schema."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            written += _tensors(value)
    return written
