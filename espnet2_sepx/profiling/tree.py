"""Work, and parts of a model: module paths gathered into a tree that is short enough to read.

A part is a module path with the indices of repeated blocks dropped and its tail cut off:
``separator.blocks.3.time.ffn1.linear1`` belongs to ``separator.blocks.time.ffn1`` at depth 4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

DEPTH = 4
Value = TypeVar("Value", int, float)


@dataclass
class Work:
    """MACs of a module, a part or a model.

    Attributes:
        weights: MACs in which one factor derives from a parameter, the convention of most papers.
        all: every multiply-accumulate.
        elementwise: multiplications and divisions without accumulation; not part of ``all``.
    """

    weights: int = 0
    all: int = 0
    elementwise: int = 0

    def __iadd__(self, other: Work) -> Work:
        self.weights += other.weights
        self.all += other.all
        self.elementwise += other.elementwise
        return self


def parameter_paths(model: nn.Module) -> dict[str, str]:
    """Where each parameter's work belongs: its layer, for layers of ``torch.nn``.

    A parameter that a model's own module holds directly gets a row of its own: its name.
    """
    paths = {}
    for name, _ in model.named_parameters():
        layer = name.rpartition(".")[0]
        standard = type(model.get_submodule(layer)).__module__.startswith("torch.nn.")
        paths[name] = layer if standard else name
    return paths


def part_of(path: str, depth: int = DEPTH) -> str:
    """The part a module path belongs to; ``model`` for what no submodule owns."""
    names = [name for name in path.split(".") if name and not name.isdigit()]
    return ".".join(names[:depth]) or "model"


def by_part(by_module: Mapping[str, int], depth: int = DEPTH) -> dict[str, int]:
    """Add up figures of modules by part, in the order in which the parts first appear."""
    parts: dict[str, int] = defaultdict(int)
    for path, value in by_module.items():
        parts[part_of(path, depth)] += value
    return dict(parts)


def parameters_by_part(model: nn.Module, depth: int = DEPTH) -> dict[str, int]:
    """Number of parameter values by part; a shared parameter counts once."""
    parts: dict[str, int] = defaultdict(int)
    paths = parameter_paths(model)
    for name, parameter in model.named_parameters():
        parts[part_of(paths[name], depth)] += parameter.numel()
    return dict(parts)


def with_subtotals(parts: Iterable[str]) -> list[str]:
    """Every part and all its ancestors, parents before children, in order of appearance.

    ``["a.b", "c", "a.d"]`` gives ``["a", "a.b", "a.d", "c"]``.
    """
    children: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        names = part.split(".")
        for length in range(1, len(names) + 1):
            parent, child = ".".join(names[: length - 1]), ".".join(names[:length])
            if child not in children[parent]:
                children[parent].append(child)
    ordered: list[str] = []

    def visit(part: str) -> None:
        ordered.append(part)
        for child in children.get(part, []):
            visit(child)

    for top in children[""]:
        visit(top)
    return ordered


def subtotal(values: Mapping[str, Value], part: str) -> Value | int:
    """Sum over a part and everything below it."""
    return sum(
        value for name, value in values.items() if name == part or name.startswith(f"{part}.")
    )
