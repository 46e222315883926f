"""SpeechBrain's RE-SepFormer and SepFormer (recipes WSJ0Mix, WHAM! and the like).

The three ``.ckpt`` files are plain state dictionaries. What shapes do not tell (heads, chunk size,
causality) stands in ``hyperparams.yaml``, which is read without running any of its tags.
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

PARTS = ("encoder", "masknet", "decoder")
HYPERPARAMS = "hyperparams.yaml"
FILES = [*(f"{part}.ckpt" for part in PARTS), HYPERPARAMS]

LAYER = (
    (r"\.self_att\.att\.in_proj_(weight|bias)$", r".attention.qkv.\1"),
    (r"\.self_att\.att\.out_proj\.", ".attention.out."),
    (r"\.pos_ffn\.ffn\.0\.", ".ffn.linear1."),
    (r"\.pos_ffn\.ffn\.3\.", ".ffn.linear2."),
    (r"\.norm([12])\.norm\.", r".norm\1."),
)
RE_SEPFORMER = (
    (r"^model\.seg_model\.(\d+)\.mdl\.norm\.norm\.", r"intra.\1.stack.norm."),
    (r"^model\.mem_model\.(\d+)\.mdl\.norm\.norm\.", r"memory.\1.stack.norm."),
    (r"^model\.seg_model\.(\d+)\.mdl\.", r"intra.\1.stack."),
    (r"^model\.mem_model\.(\d+)\.mdl\.", r"memory.\1.stack."),
    (r"^model\.seg_model\.(\d+)\.", r"intra.\1."),
    (r"^model\.mem_model\.(\d+)\.", r"memory.\1."),
    (r"^model\.output_fc\.0\.", "prelu."),
    (r"^model\.output_fc\.1\.", "output."),
    *LAYER,
)
SEPFORMER = (
    (r"^norm\.", "input_norm."),
    (r"^conv1d\.", "bottleneck."),
    (r"^dual_mdl\.(\d+)\.(intra|inter)_mdl\.mdl\.norm\.norm\.", r"blocks.\1.\2.norm."),
    (r"^dual_mdl\.(\d+)\.(intra|inter)_mdl\.mdl\.", r"blocks.\1.\2."),
    (r"^dual_mdl\.(\d+)\.", r"blocks.\1."),
    (r"^conv2d\.", "expand."),
    (r"^output(_gate)?\.0\.", r"output\1."),
    (r"^end_conv1x1\.", "mask."),
    *LAYER,
)
# What our separators compute; anything else in the YAML is another network.
BLOCK_FACTS = {
    "use_positional_encoding": True,
    "norm_before": True,
    "use_norm": True,
    "use_skip": True,
    "activation": "relu",
    "attention_type": "regularMHA",
}
RE_FACTS = {"mem_type": "av"}
DUAL_FACTS = {
    "norm": "ln",
    "linear_layer_after_inter_intra": False,
    "skip_around_intra": True,
    "use_global_pos_enc": False,
}


def recognises(folder: Path) -> bool:
    return all((folder / f"{part}.ckpt").is_file() for part in PARTS)


def load(folder: Path, options: Mapping[str, Any]) -> Imported:
    """Read the checkpoint in ``folder``."""
    encoder, masknet, decoder = (_state(folder / f"{part}.ckpt") for part in PARTS)
    notes: list[str] = []
    hyperparams = _hyperparams(folder / HYPERPARAMS, notes)
    filters, _, kernel = _entry(encoder, "conv1d.weight", folder / "encoder.ckpt").shape
    stride = hyperparams.get("Decoder", {}).get("stride", kernel // 2)
    if any(key.startswith("model.seg_model.") for key in masknet):
        name, rules, conf = "re_sepformer", RE_SEPFORMER, _re_sepformer_conf(masknet, hyperparams)
    elif any(key.startswith("dual_mdl.") for key in masknet):
        name, rules, conf = "sepformer", SEPFORMER, _sepformer_conf(masknet, hyperparams)
    else:
        raise UserError(
            f"{folder / 'masknet.ckpt'}: expected the weights of a RE-SepFormer (model.seg_model.*)"
            " or a SepFormer (dual_mdl.*)"
        )
    conf.update(options)
    filterbank = {"channel": filters, "kernel_size": kernel, "stride": int(stride)}
    streams = conf.get("causal") and conf.get("memory_norm") == "cln"
    coder = "conv_chunk" if streams else "conv"  # the same filters, for streams of chunks
    if streams:
        filterbank["chunk_size"] = conf["chunk_size"]
    state = {
        "encoder.conv1d.weight": encoder["conv1d.weight"],
        "decoder.convtrans1d.weight": _entry(decoder, "weight", folder / "decoder.ckpt"),
    }
    state.update((f"separator.{key}", value) for key, value in _renamed(masknet, rules).items())
    config = {
        "encoder": coder,
        "encoder_conf": filterbank,
        "separator": name,
        "separator_conf": conf,
        "decoder": coder,
        "decoder_conf": dict(filterbank),
    }
    return Imported(config, state, hyperparams.get("sample_rate"), notes)


def _state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling has many
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a file of weights ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: expected a dictionary of tensors")
    return dict(state)


def _entry(state: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in state:
        raise UserError(f"{path}: no '{key}' in it; expected SpeechBrain's {path.stem}")
    return state[key]


def _renamed(masknet: Mapping[str, Tensor], rules: tuple) -> dict[str, Tensor]:
    """Our names and shapes; positions are computed, not stored."""
    renamed = {}
    for key, value in masknet.items():
        if key.endswith("pos_enc.pe"):
            continue
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        # Convolutions over single frames are matrices here, affine parameters of norms vectors.
        is_norm = re.search(r"(^|[._])norm\.(weight|bias)$", key) is not None
        renamed[key] = (
            value.flatten() if is_norm else value.flatten(1) if value.dim() > 1 else value
        )
    return renamed


def _layers(masknet: Mapping[str, Tensor], prefix: str) -> int:
    found = (re.match(rf"{re.escape(prefix)}\.mdl\.layers\.(\d+)\.", key) for key in masknet)
    return 1 + max((int(match.group(1)) for match in found if match), default=-1)


def _blocks(masknet: Mapping[str, Tensor], prefix: str) -> int:
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", key) for key in masknet)
    return 1 + max((int(match.group(1)) for match in found if match), default=-1)


def _ffn_dim(masknet: Mapping[str, Tensor], prefix: str) -> int:
    return masknet[f"{prefix}.mdl.layers.0.pos_ffn.ffn.0.weight"].shape[0]


def _re_sepformer_conf(masknet: Mapping[str, Tensor], hyperparams: dict) -> dict[str, Any]:
    net = _section(hyperparams, "ResourceEfficientSeparator", RE_FACTS)
    seg = _section(net.get("seg_model") or {}, None, BLOCK_FACTS)
    mem = _section(net.get("mem_model") or {}, None, BLOCK_FACTS)
    intra, memory = "model.seg_model.0", "model.mem_model.0"
    if bool(seg.get("causal")) != bool(mem.get("causal")) or seg.get("nhead") != mem.get("nhead"):
        raise UserError(
            f"{HYPERPARAMS}: seg_model and mem_model must agree in causal and nhead to be imported"
        )
    rows, channels = masknet["model.output_fc.1.weight"].shape[:2]
    return {
        "num_spk": rows // channels,
        "num_blocks": _blocks(masknet, "model.seg_model"),
        "chunk_size": net.get("segment_size", 150),
        "intra_layers": _layers(masknet, intra),
        "intra_ffn_dim": _ffn_dim(masknet, intra),
        "memory_layers": _layers(masknet, memory),
        "memory_ffn_dim": _ffn_dim(masknet, memory),
        "num_heads": seg.get("nhead", 8),
        "causal": "chunk" if seg.get("causal") else False,
        "intra_norm": "gln" if masknet[f"{intra}.norm.weight"].dim() > 1 else "cln",
        "memory_norm": "gln" if masknet[f"{memory}.norm.weight"].dim() > 1 else "cln",
        "pad_mode": "always",
        "nonlinear": net.get("nonlinear", "relu"),
        "level_norm": False,
    }


def _sepformer_conf(masknet: Mapping[str, Tensor], hyperparams: dict) -> dict[str, Any]:
    net = _section(hyperparams, "Dual_Path_Model", DUAL_FACTS)
    facts = {key: BLOCK_FACTS[key] for key in BLOCK_FACTS if key not in ("use_norm", "use_skip")}
    intra = _section(net.get("intra_model") or {}, None, facts)
    inter = _section(net.get("inter_model") or {}, None, facts)
    prefixes = [f"dual_mdl.0.{path}_mdl" for path in ("intra", "inter")]
    widths = {_ffn_dim(masknet, prefix) for prefix in prefixes}
    if len(widths) > 1 or intra.get("nhead") != inter.get("nhead"):
        raise UserError(
            f"{HYPERPARAMS}: intra_model and inter_model must agree in d_ffn and nhead to be "
            "imported"
        )
    rows, channels = masknet["conv2d.weight"].shape[:2]
    return {
        "num_spk": rows // channels,
        "num_blocks": _blocks(masknet, "dual_mdl"),
        "intra_layers": _layers(masknet, prefixes[0]),
        "inter_layers": _layers(masknet, prefixes[1]),
        "num_heads": intra.get("nhead", 8),
        "ffn_dim": widths.pop(),
        "chunk_size": net.get("K", 250),
        "overlap": 0.5,
        "pad_mode": "always",
        "nonlinear": net.get("mask_activation", "relu"),
    }


class _Loader(yaml.SafeLoader):
    """Knows no tag; keeps their names as ``!tag`` of mappings and ``!ref`` of scalars."""


def _tagged(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {"!tag": suffix}
        mapping.update(loader.construct_mapping(node, deep=True))
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return {"!ref": node.value} if suffix == "ref" else None


_Loader.add_multi_constructor("!", _tagged)


def _hyperparams(path: Path, notes: list[str]) -> dict[str, Any]:
    """The YAML with references followed; empty, and a note, without one."""
    if not path.is_file():
        notes.append(
            f"no {HYPERPARAMS}: the values of SpeechBrain's recipe are assumed for what weights do "
            "not tell (num_heads, chunk_size, causal, nonlinear); --separator_conf changes them"
        )
        return {}
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected SpeechBrain's hyperparameters")
    return {key: _resolved(value, tree, 0) for key, value in tree.items()}


def _resolved(value: Any, tree: dict[str, Any], depth: int) -> Any:
    """``!ref <name>`` replaced by what it names; other references (expressions) by none."""
    if depth > 20:
        raise UserError(f"{HYPERPARAMS}: references go round in a circle")
    if isinstance(value, dict):
        if "!ref" in value:
            name = re.fullmatch(r"<(\w+)>", value["!ref"])
            return _resolved(tree.get(name.group(1)), tree, depth + 1) if name else None
        return {key: _resolved(item, tree, depth + 1) for key, item in value.items()}
    return value


def _section(where: dict[str, Any], kind: str | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a class, checked to be of the network that we compute.

    Args:
        where: the options, or with ``kind`` a tree in which the class of that name is looked up.
    """
    if kind is not None:
        sections = (value for value in where.values() if isinstance(value, dict))
        where = next((s for s in sections if str(s.get("!tag", "")).endswith(kind)), {})
    for option, ours in facts.items():
        if where.get(option, ours) != ours:
            raise UserError(
                f"{HYPERPARAMS}: {option} must be {ours} to be imported, got {where[option]}"
            )
    return where
