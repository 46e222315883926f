"""SPMamba as published by its authors (github.com/JusperLee/SPMamba): conf.yml, best_model.pth.

``best_model.pth`` holds a dictionary whose ``state_dict`` counts; its ``model_name`` and
``model_args`` are constants of the training script and say nothing about the network. A checkpoint
of the training framework (``state_dict`` with the prefix ``audio_model.``) loads as well. Shapes
come from the weights, the rest from ``conf.yml``.

Legend: F bins, D embedding channels, I window length, C model width D I.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from espnet2_sepx.errors import UserError
from espnet2_sepx.importers import Imported

CONF, WEIGHTS = "conf.yml", "best_model.pth"
FILES = [WEIGHTS, CONF]
LIGHTNING_PREFIX = "audio_model."
FIRST_BLOCK = "blocks.0.intra_mamba.forward_blocks.0.mixer."
# The network that we compute; other values in conf.yml are another network.
FACTS = {"n_imics": 1, "window": "hann"}


def recognises(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file()


def load(folder: Path, options: Mapping[str, Any]) -> Imported:
    """Read the checkpoint in ``folder``."""
    notes: list[str] = []
    state = _state(folder / WEIGHTS)
    stated, sample_rate = _conf(folder / CONF, notes)
    shapes = _from_shapes(state, folder / WEIGHTS)
    bins, queries = shapes.pop("bins"), shapes.pop("queries")
    n_fft = 2 * (bins - 1)
    _compare(stated, {"n_fft": n_fft, "n_srcs": shapes["num_spk"], **shapes}, folder / CONF)
    stft = {"n_fft": n_fft, "win_length": n_fft, "hop_length": stated.get("stride", n_fft // 4)}
    conf = {
        **shapes,
        "emb_hs": stated.get("emb_hs", 1),
        "activation": stated.get("activation", "prelu"),
        "eps": float(stated.get("eps", 1e-5)),
        "attn_approx_qk_dim": stated.get("attn_approx_qk_dim", queries * bins),
        "level_norm": False,
        **options,
    }
    config = {
        "encoder": "stft",
        "encoder_conf": {**stft, "window": "hann"},
        "decoder": "stft",
        "decoder_conf": {**stft, "window": "hann"},
        "separator": "spmamba",
        "separator_conf": conf,
        "model_conf": {"normalize_variance": True},
    }
    weights = {f"separator.{name}": tensor for name, tensor in state.items()}
    return Imported(config, weights, sample_rate, notes)


def _state(path: Path) -> dict[str, Tensor]:
    """The weights, whatever they are wrapped in."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling has many
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a file of weights ({reason})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected a dictionary with the entry 'state_dict'")
    state = {str(name): tensor for name, tensor in content.items()}
    if any(name.startswith(LIGHTNING_PREFIX) for name in state):
        state = {
            name.removeprefix(LIGHTNING_PREFIX): tensor
            for name, tensor in state.items()
            if name.startswith(LIGHTNING_PREFIX)
        }
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: expected tensors only in 'state_dict'")
    return state


def _conf(path: Path, notes: list[str]) -> tuple[dict[str, Any], int | None]:
    """Constructor arguments and sampling rate; empty, and a note, without the file."""
    if not path.is_file():
        notes.append(
            f"no {CONF}: hop n_fft/4, window hop 1, PReLU and eps 1e-5 are assumed; "
            "--separator_conf changes the latter three"
        )
        return {}, None
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        stated = tree["audionet"]["audionet_config"]
        if not isinstance(stated, dict):
            raise TypeError
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read ({' '.join(str(error).split())})") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the entry audionet: audionet_config:") from error
    _compare(stated, FACTS, path)
    data = (tree.get("datamodule") or {}).get("data_config") or {}
    return stated, data.get("sample_rate")


def _compare(stated: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    for option, value in expected.items():
        if stated.get(option, value) != value:
            raise UserError(
                f"{path}: {option} must be {value} to be imported with these weights, "
                f"got {stated[option]}"
            )


def _from_shapes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """What the weights say about the network."""
    try:
        dim = state["conv.0.weight"].shape[0]
        window = state["blocks.0.intra_linear.weight"].shape[2]
        taps = state[f"{FIRST_BLOCK}conv1d.weight"].shape[2]
        inner, states = state[f"{FIRST_BLOCK}A_log"].shape
        return {
            "bins": state["blocks.0.attn_concat_proj.2.gamma"].shape[-1],
            "queries": state["blocks.0.attn_conv_Q_0.0.weight"].shape[0],
            "num_spk": state["deconv.weight"].shape[1] // 2,
            "n_layers": _count(state, r"blocks\.(\d+)\."),
            "emb_dim": dim,
            "emb_ks": window,
            "d_state": states,
            "d_conv": taps,
            "expand": inner // (dim * window),
            "mamba_layers": _count(state, r"blocks\.0\.intra_mamba\.forward_blocks\.(\d+)\."),
            "attn_n_head": _count(state, r"blocks\.0\.attn_conv_Q_(\d+)\."),
        }
    except KeyError as error:
        raise UserError(f"{path}: no {error} in it; expected the weights of SPMamba") from error


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = (re.match(pattern, name) for name in state)
    return 1 + max((int(match.group(1)) for match in found if match), default=-1)
