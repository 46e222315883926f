"""How Python calls the compiled functions: argument types, and the trial before first use."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from espnet2_sepx.layers.native import build

Pointer = ctypes.c_void_p
Int = ctypes.c_int64
Kernel = TypeVar("Kernel")


def address(tensor: Tensor | None) -> int | None:
    """Where the numbers of a tensor lie; NULL for None."""
    return None if tensor is None else tensor.data_ptr()


def try_out(
    make: Callable[[str], Kernel], agrees: Callable[[Kernel], bool]
) -> tuple[Kernel | None, str]:
    """Functions for this processor's instruction set, or None; and the reason in words.

    Args:
        make: binds the functions of the library for an instruction set.
        agrees: whether they give what they should on numbers with a known answer.
    """
    isa = build.instruction_set()
    try:
        kernel = make(isa)
    except build.Unavailable as error:
        return None, str(error)
    if not agrees(kernel):
        return None, f"the {isa} kernel gives other values than it should here"
    return kernel, f"compiled kernel for {isa}"
