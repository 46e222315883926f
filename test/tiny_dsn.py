"""A DSN with two widths that separates in milliseconds."""

from __future__ import annotations

from typing import Any

LEVELS = [0.25, 1.0]
_CODER = {"channel": 16, "kernel_size": 16, "stride": 8}
CONFIG: dict[str, Any] = {
    "encoder": "conv",
    "encoder_conf": _CODER,
    "decoder": "conv",
    "decoder_conf": _CODER,
    "separator": "dsn",
    "separator_conf": {
        "levels": LEVELS,
        "num_blocks": 1,
        "intra_layers": 1,
        "inter_layers": 1,
        "num_heads": 4,
        "ffn_dim": 16,
        "chunk_size": 10,
        "gate_dim": 8,
        "gate_ffn_dim": 16,
        "gate_pool_frames": 8,
    },
}
