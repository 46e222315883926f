"""Raster images of the report: spectrograms and maps of chosen experts, as PNG data URIs.

Axes, legends and labels are drawn by the page itself (they follow its theme and stay sharp), so an
image here is nothing but its cells. Both kinds are stored as palette images, which are small.

Legend: T frames, F bins, K bands, E experts.
"""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DYNAMIC_RANGE_DB = 70.0  # floor of a spectrogram below the loudest cell of its example
SHADES = 64  # enough for the eye; 64 instead of 256 halves the size of the file
FRAME_S, HOP_S = 0.032, 0.008

# Twelve colours that stay apart in light and dark surroundings, neighbours differing in lightness.
_CURATED = (
    "#3b76d6", "#f2a03d", "#2f9e77", "#d64a6b", "#8bc4f0", "#7a4fb5",
    "#c9cf4a", "#8c5a3c", "#5fd0c5", "#e58ac4", "#55606e", "#b52b1e",
)  # fmt: skip


def expert_palette(count: int) -> list[str]:
    """``count`` distinct colours as ``#rrggbb``; a longer palette begins with the shorter one."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    colours = list(_CURATED[:count])
    for index in range(len(colours), count):
        # Golden-angle hues never meet; lightness cycles so that close hues differ otherwise.
        hue = (0.11 + index * 0.618034) % 1.0
        red, green, blue = colorsys.hls_to_rgb(hue, (0.36, 0.52, 0.7)[index % 3], 0.55)
        colours.append(f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}")
    return colours


def spectrogram_db(
    signal: NDArray[np.float64], window: int, hop: int, columns: int | None = None
) -> NDArray[np.float64]:
    """Power spectrogram in dB, centred frames.

    Args:
        signal: (samples,).
        window: Hann window and FFT size in samples.
        hop: in samples.
        columns: take about this many frames instead, evenly spaced, if there are more.

    Returns:
        (F, T) with F = window // 2 + 1 and T = 1 + samples // hop.
    """
    padded = np.pad(np.asarray(signal, dtype=np.float64), (window // 2, window // 2 + hop))
    starts = np.arange(1 + len(signal) // hop) * hop
    if columns is not None and len(starts) > columns:
        starts = starts[np.linspace(0, len(starts) - 1, columns).round().astype(int)]
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[starts]
    spectrum = np.fft.rfft(frames * np.hanning(window + 1)[:-1], axis=1)
    return 10.0 * np.log10(np.maximum(np.abs(spectrum.T) ** 2, 1e-12))


def spectrogram_png(level_FT: NDArray[np.float64], top_db: float) -> str:
    """A spectrogram as PNG data URI, low frequencies at the bottom, ``top_db`` the brightest."""
    from matplotlib import colormaps

    unit = np.clip((level_FT - top_db) / DYNAMIC_RANGE_DB + 1.0, 0.0, 1.0)
    shades = np.round(unit * (SHADES - 1)).astype(np.uint8)
    colours = colormaps["magma"](np.linspace(0.0, 1.0, SHADES))[:, :3]
    return palette_png(shades[::-1], np.round(colours * 255).astype(int).tolist())


def index_png(index: NDArray[np.integer], palette: Sequence[str]) -> str:
    """A map (rows, columns) of indices as PNG data URI, row 0 at the bottom."""
    if index.size and not 0 <= index.min() <= index.max() < len(palette):
        raise ValueError(
            f"index must lie in 0..{len(palette) - 1}, got {index.min()}..{index.max()}"
        )
    colours = [[int(name[at : at + 2], 16) for at in (1, 3, 5)] for name in palette]
    return palette_png(index[::-1].astype(np.uint8), colours)


def palette_png(cells: NDArray[np.uint8], colours: Sequence[Sequence[int]]) -> str:
    """A palette image (rows, columns), row 0 on top, one pixel per cell."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(cells))
    image.putpalette([channel for colour in colours for channel in colour])
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return data_uri(stream.getvalue(), "image/png")


def data_uri(content: bytes, media_type: str) -> str:
    """Embed a file in a page."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
