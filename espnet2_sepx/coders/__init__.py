"""Encoders and decoders that ESPnet lacks."""
