"""Where the numbers in a tensor come from: parameters, constants or the input signal.

Published MAC figures count the layers that hold weights, so the counter has to know whether an
operand derives from a parameter. Origins are kept per *storage*: views share them for free, and
writing into a view changes the origin of the whole.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from espnet2_sepx.profiling.tree import parameter_paths


class Origin(enum.IntEnum):
    """Origin of a tensor; in a mix the largest wins."""

    FIXED = 0  # a buffer: part of the model, the same for every input
    FRESH = 1  # made from nothing during the run: ``zeros``, positions, a window
    WEIGHT = 2  # from parameters, perhaps mixed with the two above
    DATA = 3  # from the input


class Kind(enum.Enum):
    """What an operator does, as far as origins are concerned."""

    OTHER = enum.auto()
    # A weight applied to a constant gives an activation, hence data, as every layer's output is;
    # weight times weight stays a weight.
    PRODUCT = enum.auto()
    # First input: a table; others: indices. Indices made during the run (positions, tokens) read a
    # table, whose rows are data even if it is a parameter; a buffer's only rearrange the weights.
    LOOKUP = enum.auto()
    CREATION = enum.auto()  # wraps numbers that came from Python


class Provenance:
    """Origins of all storages that do not hold data, and the module that owns the weights in them.

    Args:
        model: its parameters are weights, its buffers fixed. Tensors that the model keeps in
            plain attributes have no known origin and count as data: drop such caches first.
    """

    def __init__(self, model: nn.Module) -> None:
        # A live weak reference keeps the storage's address from being used again.
        self._known: dict[int, tuple[StorageWeakRef, Origin, str]] = {}
        for buffer in model.buffers():
            self._set(buffer, Origin.FIXED, "")
        paths = parameter_paths(model)
        for name, parameter in model.named_parameters():
            self._set(parameter, Origin.WEIGHT, paths[name])

    def of(self, tensor: Tensor) -> Origin:
        return self._find(tensor)[0]

    def owner(self, tensors: Iterable[Tensor]) -> str | None:
        """Innermost path that owns all weights in ``tensors``; None without weights."""
        owners = [owner for origin, owner in map(self._find, tensors) if origin == Origin.WEIGHT]
        return _common_module(owners) if owners else None

    def record(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        written: list[Tensor],
        kind: Kind,
    ) -> None:
        """Derive the origins of an operator's results.

        Args:
            inputs: every tensor the operator was given.
            outputs: every tensor it returned.
            written: the inputs that it changed in place.
            kind: what the operator does.
        """
        origin = self._result([self.of(tensor) for tensor in inputs], kind)
        owner = self.owner(inputs) or ""
        # Views and in-place results keep the origin of their storage, unless it was unknown.
        storages = set() if kind == Kind.CREATION else {_address(tensor) for tensor in inputs}
        for tensor in written:
            self._set(tensor, max(origin, self.of(tensor)), owner)
        for tensor in outputs:
            if _address(tensor) not in storages:
                self._set(tensor, origin, owner)

    @staticmethod
    def _result(origins: list[Origin], kind: Kind) -> Origin:
        """Origin of a result from those of the inputs."""
        if kind == Kind.CREATION or not origins:
            return Origin.FRESH
        if kind == Kind.LOOKUP:
            rearranged = all(origin == Origin.FIXED for origin in origins[1:])
            return origins[0] if rearranged else Origin.DATA
        if kind == Kind.PRODUCT and len(set(origins)) > 1:
            return Origin.DATA
        return max(origins)

    def _find(self, tensor: Tensor) -> tuple[Origin, str]:
        address = _address(tensor)
        if address not in self._known:
            return Origin.DATA, ""
        return self._known[address][1:]

    def _set(self, tensor: Tensor, origin: Origin, owner: str) -> None:
        address = _address(tensor)
        if address is None:
            return
        if origin == Origin.DATA:
            self._known.pop(address, None)
        else:
            self._known[address] = (StorageWeakRef(tensor.untyped_storage()), origin, owner)


def _address(tensor: Tensor) -> int | None:
    """Identity of the storage; None for a tensor without one (sparse)."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:
        return None


def _common_module(paths: list[str]) -> str:
    """The longest module path that is a prefix of all."""
    common = paths[0].split(".")
    for path in paths[1:]:
        parts = path.split(".")
        length = 0
        while length < min(len(common), len(parts)) and common[length] == parts[length]:
            length += 1
        common = common[:length]
    return ".".join(common)
