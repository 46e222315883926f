"""Algorithmic latency, measured: how far behind the input the first affected output sample lies.

The input is changed from sample n on; if the output changes from sample m on, then sample m looked
n - m samples ahead. Output comes in frames, so m stays the same while n moves through one hop; the
last such n gives the longest look, which is the latency of a stream with ideal hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Change of an output sample, relative to the largest sample, that rounding cannot explain.
TOLERANCE = 1e-4


def algorithmic_latency(run: Callable[[Tensor], Sequence[Tensor]], mixture: Tensor) -> int | None:
    """Look-ahead in samples; None if it grows with the input (the model sees all of it).

    Args:
        run: from ``(1, samples)`` to waveforms of that shape.
        mixture: an input without silence, several times longer than the latency to be found.
    """
    samples = mixture.shape[1]
    reference = torch.stack(tuple(run(mixture)))
    floor = TOLERANCE * reference.abs().max()

    def first_affected(changed_from: int) -> int:
        changed = mixture.clone()
        changed[:, changed_from:] = changed[:, changed_from:].flip(1).neg()
        difference = (torch.stack(tuple(run(changed))) - reference).abs().amax((0, 1))
        affected = (difference > floor).nonzero()
        return int(affected[0]) if len(affected) else samples

    early, late = samples // 2, 3 * samples // 4
    start, end = first_affected(early), first_affected(late)
    if end - start < (late - early) // 2:
        return None
    # The first affected sample rises with the change: find the last change that reaches `start`.
    below, above = early, late
    while above - below > 1:
        middle = (below + above) // 2
        if first_affected(middle) > start:
            above = middle
        else:
            below = middle
    return below - start
