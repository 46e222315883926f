"""Selective scan (Mamba): one function, several implementations. See ``backends``."""

from espnet2_sepx.layers.scan.backends import BACKENDS, VARIABLE, explain
from espnet2_sepx.layers.scan.functions import causal_conv_silu, selective_scan

__all__ = ["BACKENDS", "VARIABLE", "causal_conv_silu", "explain", "selective_scan"]
