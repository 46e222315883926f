"""Builds the model of any ESPnet ``enh`` configuration, without data, and runs it."""

from __future__ import annotations

import argparse
import inspect
import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import nn

from espnet2_sepx.errors import UserError
from espnet2_sepx.infer.forward import EnhModel, frame_samples, separate

__all__ = [  # the forward pass lives in `infer`, and is part of what is offered here
    "build_model",
    "check_length",
    "frame_samples",
    "load_config",
    "load_parameters",
    "sample_rate",
    "separate",
]

# Parts with classes to choose from, and ESPnet's defaults; a separator has to be named.
PARTS = {"encoder": "stft", "separator": None, "decoder": "stft"}


def load_config(path: str | Path) -> dict[str, Any]:
    """Read an ESPnet YAML; ``UserError`` if it is not one of the ``enh`` task."""
    path = Path(path)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot read ({error.strerror}); give an ESPnet enh configuration in YAML"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected 'key: value' lines of an ESPnet enh configuration")
    return config


def build_model(config: dict[str, Any], name: str = "config") -> nn.Module:
    """Build encoder, separator and decoder in eval mode; missing keys get ESPnet's defaults.

    Losses, initialisation and everything else that training adds are left out.

    Args:
        config: the content of a configuration file.
        name: how to call it in messages.
    """
    enh = _import_task()
    arguments: dict[str, Any] = {
        "mask_module": config.get("mask_module") or "multi_mask",
        "mask_module_conf": config.get("mask_module_conf") or {},
        "diffusion_model": config.get("diffusion_model"),
        "diffusion_model_conf": config.get("diffusion_model_conf") or {},
        "model_conf": config.get("model_conf") or {},
        "criterions": None,
        "init": None,
    }
    for part, default in PARTS.items():
        choices = getattr(enh, f"{part}_choices")
        arguments[part] = _choice(config, part, default, choices.classes, name)
        arguments[f"{part}_conf"] = config.get(f"{part}_conf") or {}
        _check_options(choices.classes[arguments[part]], arguments, part, name)
    try:
        model = enh.EnhancementTask.build_model(argparse.Namespace(**arguments))
    except Exception as error:  # whatever a constructor finds wrong with its options
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: the model cannot be built: {message}") from error
    return model.eval()


def _import_task() -> ModuleType:
    """ESPnet's task with our classes; its import warns about optional packages nobody asked for."""
    unread = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(unread), redirect_stderr(unread):
        warnings.simplefilter("ignore")
        import espnet2.tasks.enh as enh

    import espnet2_sepx

    espnet2_sepx.register()
    return enh


def _choice(
    config: dict[str, Any], part: str, default: str | None, classes: dict[str, type], name: str
) -> str:
    known = ", ".join(sorted(classes))
    choice = config.get(part, default)
    if choice is None:
        raise UserError(f"{name}: no '{part}:' in the configuration; known: {known}")
    if str(choice).lower() not in classes:
        raise UserError(f"{name}: unknown {part} '{choice}'; known: {known}")
    return str(choice).lower()


def _check_options(cls: type, arguments: dict[str, Any], part: str, name: str) -> None:
    """Name the options of a class when one is misspelt or missing."""
    options = arguments[f"{part}_conf"]
    if not isinstance(options, dict):
        raise UserError(f"{name}: {part}_conf: expected 'option: value' lines, got {options!r}")
    signature = inspect.signature(cls)
    positional = ("input_dim",) if part == "separator" else ()
    try:
        signature.bind(*positional, **options)
    except TypeError as error:
        known = ", ".join(list(signature.parameters)[len(positional) :])
        raise UserError(f"{name}: {part}_conf: {error}; known: {known}") from error


def load_parameters(model: nn.Module, path: str | Path) -> None:
    """Load a parameter file (or the ``model`` entry of an ESPnet checkpoint)."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if "model" in state and isinstance(state["model"], dict):
            state = state["model"]
        model.load_state_dict(state)
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from error
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise UserError(
            f"{path}: not a parameter file of this configuration ({reason}); "
            "give the .pth file that was trained with it"
        ) from error


def stated_rate(config: dict[str, Any]) -> int | None:
    """The rate in Hz that a configuration states.

    ESPnet's own top-level ``sample_rate`` is not consulted: it is 8000 in any file that never set
    it.
    """
    stated = (
        (config.get(section) or {}).get(key)
        for section, key in (
            ("separator_conf", "sample_rate"),
            ("encoder_conf", "default_fs"),
            ("separator_conf", "target_fs"),
            ("preprocessor_conf", "sample_rate"),
        )
    )
    return next((int(value) for value in stated if value), None)


def sample_rate(config: dict[str, Any], asked: int | None, name: str = "config") -> int:
    """The rate asked for, or the one that the configuration states (Hz)."""
    rate = asked or stated_rate(config)
    if rate is None:
        raise UserError(f"{name}: the sampling rate is not stated in it; give --fs, e.g. --fs 8000")
    return rate


def check_length(model: EnhModel, samples: int, fs: int) -> None:
    """Refuse an input that does not fill one frame of the encoder."""
    frame = frame_samples(model, fs)
    if samples < frame:
        raise UserError(
            f"an input of {samples} samples ({samples / fs:g} s at {fs} Hz) is shorter than one "
            f"frame of {frame} samples; give --seconds {frame / fs:.4g} or more"
        )
