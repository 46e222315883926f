"""Efficient speech separation for ESPnet2's ``enh`` task."""

__version__ = "0.1.0"
