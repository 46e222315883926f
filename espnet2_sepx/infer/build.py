"""Builds an ``enh`` model from its configuration without ESPnet's task, whose import takes seconds.

Only the classes that the configuration names are imported. A name that is not listed here (another
package may have registered it) or a diffusion model goes the long way through ESPnet's task.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import nn

from espnet2_sepx.errors import UserError
from espnet2_sepx.infer.find import ModelFiles
from espnet2_sepx.infer.forward import EnhModel
from espnet2_sepx.registration import TABLE

ESPNET = {
    "encoder": {
        "stft": "espnet2.enh.encoder.stft_encoder:STFTEncoder",
        "conv": "espnet2.enh.encoder.conv_encoder:ConvEncoder",
        "same": "espnet2.enh.encoder.null_encoder:NullEncoder",
    },
    "separator": {
        name: f"espnet2.enh.separator.{module}:{class_name}"
        for name, module, class_name in (
            ("asteroid", "asteroid_models", "AsteroidModel_Converter"),
            ("bsrnn", "bsrnn_separator", "BSRNNSeparator"),
            ("conformer", "conformer_separator", "ConformerSeparator"),
            ("dan", "dan_separator", "DANSeparator"),
            ("dc_crn", "dc_crn_separator", "DC_CRNSeparator"),
            ("dccrn", "dccrn_separator", "DCCRNSeparator"),
            ("dpcl", "dpcl_separator", "DPCLSeparator"),
            ("dpcl_e2e", "dpcl_e2e_separator", "DPCLE2ESeparator"),
            ("dprnn", "dprnn_separator", "DPRNNSeparator"),
            ("dptnet", "dptnet_separator", "DPTNetSeparator"),
            ("fasnet", "fasnet_separator", "FaSNetSeparator"),
            ("ineube", "ineube_separator", "iNeuBe"),
            ("rnn", "rnn_separator", "RNNSeparator"),
            ("skim", "skim_separator", "SkiMSeparator"),
            ("svoice", "svoice_separator", "SVoiceSeparator"),
            ("tcn", "tcn_separator", "TCNSeparator"),
            ("tfgridnet", "tfgridnet_separator", "TFGridNet"),
            ("tfgridnetv2", "tfgridnetv2_separator", "TFGridNetV2"),
            ("tfgridnetv3", "tfgridnetv3_separator", "TFGridNetV3"),
            ("transformer", "transformer_separator", "TransformerSeparator"),
            ("uses", "uses_separator", "USESSeparator"),
            ("uses2", "uses2_separator", "USES2Separator"),
            ("wpe_beamformer", "neural_beamformer", "NeuralBeamformer"),
        )
    },
    "decoder": {
        "stft": "espnet2.enh.decoder.stft_decoder:STFTDecoder",
        "conv": "espnet2.enh.decoder.conv_decoder:ConvDecoder",
        "same": "espnet2.enh.decoder.null_decoder:NullDecoder",
    },
}
"""ESPnet's choices, ``module:class``."""

_DEFAULTS = {"encoder": "stft", "separator": "rnn", "decoder": "stft"}


class Network(nn.Module):
    """Encoder, separator and decoder, with what inference reads of ``ESPnetEnhancementModel``."""

    def __init__(self, encoder: nn.Module, separator: nn.Module, decoder: nn.Module, conf: dict):
        super().__init__()
        self.encoder = encoder
        self.separator = separator
        self.decoder = decoder
        self.num_spk = int(separator.num_spk)  # type: ignore[arg-type]
        self.ref_channel = getattr(separator, "ref_channel", None) or 0
        self.normalize_variance = bool(conf.get("normalize_variance", False))
        self.normalize_variance_per_ch = bool(conf.get("normalize_variance_per_ch", False))
        self.always_forward_in_48k = bool(conf.get("always_forward_in_48k", False))


def load_network(files: ModelFiles) -> EnhModel:
    """Build the model and give it its parameters; in eval mode, on the CPU.

    Raises:
        UserError: the configuration does not describe a model, or the parameters are of another
            one or more than tensors.
    """
    model = build_network(files.config, files.config_name)
    try:
        with files.open_weights() as stream:
            state = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{files.weights_name}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch's own, pickle's and zipfile's
        raise UserError(
            f"{files.weights_name}: is damaged, or holds more than the tensors of a model; "
            "do not use this file, get it again from where you trust it"
        ) from error
    _load_state(model, state, files)
    return model.eval()


def build_network(config: dict[str, Any], name: str) -> EnhModel:
    """The model of a configuration, with random parameters, in eval mode."""
    classes = {part: _find_class(part, config.get(part) or _DEFAULTS[part]) for part in _DEFAULTS}
    if None in classes.values() or config.get("diffusion_model"):
        from espnet2_sepx.profiling.model import build_model

        return build_model(config, name)

    def build(part: str, *arguments: int) -> nn.Module:
        cls = classes[part]
        assert cls is not None, "looked at above"
        return cls(*arguments, **(config.get(f"{part}_conf") or {}))

    try:
        encoder = build("encoder")
        separator = build("separator", encoder.output_dim)  # type: ignore[arg-type]
        network = Network(encoder, separator, build("decoder"), config.get("model_conf") or {})
    except Exception as error:  # whatever a constructor finds wrong with its options
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name}: the model cannot be built: {message}; give the config.yaml of its training"
        ) from error
    return network.eval()


def _find_class(part: str, name: str) -> type[nn.Module] | None:
    """The class of this name; None if neither we nor ESPnet's own list has it."""
    ours = {
        row.name: f"{row.module}:{row.class_name}"
        for row in TABLE
        if row.choices == f"{part}_choices"
    }
    place = (ESPNET[part] | ours).get(str(name).lower())
    if place is None:
        return None
    module, _, class_name = place.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ESPnet's modules, about what is no business of ours
        return getattr(importlib.import_module(module), class_name)


def _load_state(model: EnhModel, state: Any, files: ModelFiles) -> None:
    """Load the parameters of encoder, separator and decoder; those of losses are left alone."""
    if isinstance(state, dict) and isinstance(state.get("model"), dict):  # a training checkpoint
        state = state["model"]
    parts = tuple(f"{name}." for name, _ in model.named_children())
    try:
        wanted = {key: value for key, value in state.items() if key.startswith(parts)}
        model.load_state_dict(wanted)
    except (AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{files.weights_name}: does not fit {files.config_name} ({reason}); "
            "give the .pth file that was trained with it (--model_file)"
        ) from error
