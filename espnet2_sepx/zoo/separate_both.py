"""The fresh process of a pack's proof: packed model and original, same input, compared.

Started by ``pack.prove`` with one argument, the request as JSON. Only ESPnet's own classes are
used, as by somebody who downloads the pack.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray


def main(request: dict[str, Any]) -> None:
    """Separate with both models and write the comparison to ``request["result"]``."""
    from espnet2.bin.enh_inference import SeparateSpeech
    from espnet2.tasks.enh import EnhancementTask

    mixture, rate = soundfile.read(request["wav"], dtype="float32")

    def separate(config: str, weights: str) -> NDArray[np.float32]:
        torch.load(weights, map_location="cpu", weights_only=True)  # nothing but tensors inside
        model = SeparateSpeech(train_config=config, model_file=weights)
        # As ESPnet's command does, which may open files named in the configuration.
        EnhancementTask.build_preprocess_fn(model.enh_train_args, False)
        torch.manual_seed(0)
        return np.concatenate(model(mixture[None], fs=rate))

    with opened_files(request["forbidden"]) as opened:
        packed = separate(*request["packed"])
    original = separate(*request["original"])
    result = {
        "opened": opened,
        "difference": relative_difference(packed, original),
        "speakers": len(packed),
        "seconds": len(mixture) / rate,
        "sample_rate": rate,
    }
    Path(request["result"]).write_text(json.dumps(result), encoding="utf-8")


def relative_difference(packed: NDArray[np.float32], original: NDArray[np.float32]) -> float:
    """Largest difference over the peak of the original; infinite for unequal shapes and NaN."""
    if packed.shape != original.shape or not np.isfinite(packed).all():
        return float("inf")
    peak = float(np.abs(original).max(initial=0))
    difference = float(np.abs(packed - original).max(initial=0))
    return difference / peak if peak > 0 else difference


@contextmanager
def opened_files(forbidden: list[str]) -> Iterator[list[str]]:
    """Names of files at or below the ``forbidden`` paths that are opened in this block."""
    opened: list[str] = []
    folders = [Path(path) for path in forbidden]
    active = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not active or event != "open" or not isinstance(arguments[0], str):
            return
        path = Path(arguments[0]).absolute()
        if any(path == folder or folder in path.parents for folder in folders):
            opened.append(str(path))

    sys.addaudithook(watch)  # cannot be removed, hence `active`
    try:
        yield opened
    finally:
        active = False


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
