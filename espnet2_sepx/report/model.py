"""The trained system that a report looks into, by nothing but ESPnet's inference class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from espnet2_sepx.errors import UserError


def load_model(config: Path, model_file: Path) -> Any:
    """ESPnet's ``SeparateSpeech``.

    Raises:
        UserError: the weights do not fit the configuration.
    """
    from espnet2.bin.enh_inference import SeparateSpeech

    try:
        return SeparateSpeech(train_config=str(config), model_file=str(model_file))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{model_file.name}: does not load with {config.name} ({reason[0]}); "
            "train again (stage 3)"
        ) from error
