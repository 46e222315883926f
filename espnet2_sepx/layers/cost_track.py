"""What a conditional separator did for each frame, in multiply-accumulates (MACs).

A separator whose work depends on its input (experts, slimmable widths, early exits) tells the
profiler which part of its work that is, so that it can report theoretical and executed cost per
frame of real audio. The protocol, to be implemented by the separator:

* attribute ``record_cost``, false after construction: set true, every forward pass fills
  ``last_cost`` with a ``CostTrack``; false costs nothing;
* attribute ``last_cost``, None until then.

The figures follow the rules of ``espnet2_sepx.profiling.rules``, column ``all``: a product of an
(m, k) by a (k, n) matrix is m k n MACs, biases and elementwise work are free. Two laws tie them to
what the profiler counts from executed operators, and are tested for every such separator:

* counted MACs minus ``executed.sum()`` is the same for every input of one length: what is not in
  the track (gates and routers included) does not depend on the input;
* counted MACs of a pass in which nothing is skipped equal the counted MACs of this one minus
  ``executed.sum()`` plus ``densest.sum()``.

So the track holds the work of the machine, done for padding inside the model too (the last chunk,
a second copy of a frame in overlapping chunks): it is charged to the frame it belongs to, or to the
nearest one. Rows that only round a kernel's block up are no part of it. A product of two frames
(attention) is charged to the query's.

Legend: B batch, T frames of the separator's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass
class CostTrack:
    """MACs of the conditional part of one forward pass, on the CPU, detached."""

    executed: Tensor
    """What ran for each frame, float64 ``(B, T)``."""
    densest: Tensor
    """What would have run if nothing had been skipped, float64 ``(B, T)``."""
    valid: Tensor
    """Frames that are not padding of the batch, bool ``(B, T)``."""


@runtime_checkable
class Conditional(Protocol):
    """A separator that keeps the protocol."""

    record_cost: bool
    last_cost: CostTrack | None
