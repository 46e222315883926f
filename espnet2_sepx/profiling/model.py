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
from torch import Tensor, nn

from espnet2_sepx.errors import UserError

EnhModel = Any  # an ESPnetEnhancementModel, which cannot be imported cheaply

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
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: not a parameter file of this configuration ({reason}); "
            "give the .pth file that was trained with it"
        ) from error


def sample_rate(config: dict[str, Any], asked: int | None, name: str = "config") -> int:
    """The rate asked for, or the one that the configuration states (Hz).

    ESPnet's own top-level ``sample_rate`` is not consulted: it is 8000 in any file that never set
    it.
    """
    stated = [
        (config.get(section) or {}).get(key)
        for section, key in (
            ("separator_conf", "sample_rate"),
            ("encoder_conf", "default_fs"),
            ("separator_conf", "target_fs"),
        )
    ]
    rate = next((value for value in [asked, *stated] if value), None)
    if rate is None:
        raise UserError(f"{name}: the sampling rate is not stated in it; give --fs, e.g. --fs 8000")
    return int(rate)


def check_length(model: EnhModel, samples: int, fs: int) -> None:
    """Refuse an input that does not fill one frame of the encoder."""
    frame = frame_samples(model, fs)
    if samples < frame:
        raise UserError(
            f"an input of {samples} samples ({samples / fs:g} s at {fs} Hz) is shorter than one "
            f"frame of {frame} samples; give --seconds {frame / fs:.4g} or more"
        )


def frame_samples(model: EnhModel, fs: int) -> int:
    """Length of one frame of the encoder; 1 for an encoder without frames."""
    encoder = model.encoder
    if hasattr(encoder, "stft"):
        frame = encoder.stft.n_fft
        return frame * fs // encoder.default_fs if _any_rate(model) else frame
    return int(getattr(encoder, "kernel_size", 1))


@torch.no_grad()
def separate(model: EnhModel, mixture: Tensor, fs: int) -> list[Tensor]:
    """Separate ``(1, samples[, channels])``; the same steps as ESPnet's ``SeparateSpeech``.

    Returns:
        one waveform (1, samples) per speaker.
    """
    from espnet2.enh.diffusion_enh import ESPnetDiffusionModel

    samples = mixture.shape[1]
    everything_48k = getattr(model, "always_forward_in_48k", False) and not _any_rate(model)
    if everything_48k:
        mixture = _resample(mixture, fs, 48000)
    lengths = torch.full((1,), mixture.shape[1], dtype=torch.long, device=mixture.device)
    scale = None
    if getattr(model, "normalize_variance_per_ch", False):
        scale = mixture.std(1, keepdim=True)
    elif getattr(model, "normalize_variance", False):
        scale = mixture.std(tuple(range(1, mixture.dim())), keepdim=True)
    if scale is not None:
        mixture = mixture / scale
    rate = fs if _any_rate(model) else None
    features, frames = model.encoder(mixture, lengths, fs=rate)
    if isinstance(model, ESPnetDiffusionModel):
        estimates = [model.enhance(features)]
    else:
        estimates, _, _ = model.separator(features, frames, {})
    waves = [model.decoder(estimate, lengths, fs=rate)[0] for estimate in estimates]
    if scale is not None:
        if scale.dim() > 2:  # (1, 1, 1 or channels)
            scale = scale[:, :, model.ref_channel if scale.shape[2] > 1 else 0]
        waves = [wave * scale for wave in waves]
    if everything_48k:
        waves = [_resample(wave, 48000, fs)[:, :samples] for wave in waves]
    return waves


def _any_rate(model: EnhModel) -> bool:
    """Whether ESPnet gives this separator's encoder and decoder the rate of the recording."""
    from espnet2.enh.separator.bsrnn_separator import BSRNNSeparator
    from espnet2.enh.separator.tfgridnetv3_separator import TFGridNetV3
    from espnet2.enh.separator.uses_separator import USESSeparator

    separator = getattr(model, "separator", None)
    return isinstance(separator, (BSRNNSeparator, USESSeparator, TFGridNetV3))


def _resample(wave: Tensor, old: int, new: int) -> Tensor:
    import torchaudio

    return torchaudio.functional.resample(wave, old, new)
