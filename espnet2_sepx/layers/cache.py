"""Values derived from parameters that inference computes once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

Value = TypeVar("Value")


class EvalCache(nn.Module):
    """Base class of layers that fold or rearrange their weights.

    ``cached`` computes anew while gradients are recorded or the layer trains, so that the result
    stays in the graph; otherwise it keeps the result. ``train()``, ``eval()``, loading a state dict
    and moving the layer (``to``, ``double``) forget it. Whoever edits weights in place by hand
    calls ``eval()``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, Any] = {}

    def cached(self, key: str, compute: Callable[[], Value]) -> Value:
        if self.training or torch.is_grad_enabled():
            return compute()
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def cached_for(self, key: str, size: int, compute: Callable[[], Value]) -> Value:
        """``cached`` for values that depend on a size, too: keeps that of the latest size only."""
        kept_size, value = self.cached(key, lambda: (size, compute()))
        if kept_size != size:
            del self._kept[key]
            _, value = self.cached(key, lambda: (size, compute()))
        return value

    def train(self, mode: bool = True) -> EvalCache:
        self._kept = {}
        return super().train(mode)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._kept = {}
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self._kept = {}
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}
