"""Line, scatter and histogram charts as inline SVG.

Drawn here rather than by a plotting library so that colours come from the page's style sheet
(classes ``s1``, ``s2``, ...; readable in light and dark), text stays text, and a chart costs a few
kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 380.0, 232.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 12.0, 40.0


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption."""

    title: str
    svg: str


@dataclass(frozen=True)
class Series:
    """One curve; ``style`` is a class of the style sheet, ``label`` "" keeps it out of the key."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    style: str = "s1"


@dataclass(frozen=True)
class Frame:
    """Maps data to the drawing area and draws its axes."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def axes(
        self,
        x_label: str,
        y_label: str,
        whole_x: bool = False,
        x_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> list[str]:
        """Grid lines, tick labels and axis titles.

        Args:
            whole_x: label whole numbers only.
            x_ticks: (place, label) instead of round numbers.
        """
        if x_ticks is None:
            numbers = ticks(self.x_low, self.x_high)
            x_ticks = [(n, format_tick(n)) for n in numbers if not whole_x or n == int(n)]
        parts = []
        for tick in ticks(self.y_low, self.y_high):
            at = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_ys(at)}/>')
            parts.append(
                f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">'
                f"{format_tick(tick)}</text>"
            )
        for place, label in x_ticks:
            parts.append(
                f'<text class="tick" x="{self.x(place):.1f}" y="{HEIGHT - BOTTOM + 16}" '
                f'text-anchor="middle">{escape(label)}</text>'
            )
        base = HEIGHT - BOTTOM
        middle_x = (LEFT + WIDTH - RIGHT) / 2
        middle_y = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_ys(base)}/>')
        parts.append(
            f'<text class="title" x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(x_label)}</text>"
        )
        parts.append(
            f'<text class="title" transform="translate(12 {middle_y}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_label)}</text>'
        )
        return parts


def line_chart(
    name: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    from_zero: bool = False,
    dots: bool = False,
) -> Markup:
    """Curves over a common x axis; None interrupts a curve.

    Args:
        from_zero: the y axis begins at 0 or below.
        dots: mark the points, and let the x axis have fractions; else it counts something.
    """
    points = [
        (x, y) for curve in series for x, y in zip(curve.xs, curve.ys, strict=True) if y is not None
    ]
    if not points:
        return Markup("")
    ys = [y for _, y in points] + ([0.0] if from_zero else [])
    frame = _frame([x for x, _ in points], ys, pad_x=dots)
    body = frame.axes(x_label, y_label, whole_x=not dots)
    for curve in series:
        for piece in _unbroken(curve):
            path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in piece)
            body.append(f'<polyline class="line {curve.style}" points="{path}"/>')
            for x, y in piece if dots or len(piece) == 1 else ():
                body.append(
                    f'<circle class="dot {curve.style}" r="3" cx="{frame.x(x):.1f}" '
                    f'cy="{frame.y(y):.1f}"/>'
                )
    labels = [(curve.label, curve.style) for curve in series if curve.label]
    return _svg(name, body) + _key(labels)


def scatter_chart(
    name: str, points: Sequence[tuple[float, float, str]], x_label: str, y_label: str
) -> Markup:
    """Dots (x, y, tooltip)."""
    if not points:
        return Markup("")
    frame = _frame([x for x, _, _ in points], [y for _, y, _ in points])
    body = frame.axes(x_label, y_label)
    if frame.y_low < 0.0 < frame.y_high:
        body.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_ys(frame.y(0))}/>')
    radius = 3.5 if len(points) <= 300 else 2
    for x, y, tip in points:
        body.append(
            f'<circle class="dot s1" r="{radius}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}">'
            f"<title>{escape(tip)}</title></circle>"
        )
    return _svg(name, body)


def histogram(name: str, values: Sequence[float], x_label: str, y_label: str) -> Markup:
    """Counts in bins of round width; the mean is marked."""
    if not values:
        return Markup("")
    low, high = min(values), max(values)
    width = nice_step((high - low) / max(5.0, min(24.0, math.sqrt(len(values)) * 1.5)) or 1.0)
    first = math.floor(low / width)
    counts = [0] * (math.floor(high / width) - first + 1)
    for value in values:
        counts[math.floor(value / width) - first] += 1
    frame = Frame(first * width, (first + len(counts)) * width, 0.0, max(counts) * 1.08)
    body = frame.axes(x_label, y_label)
    for index, count in enumerate(counts):
        start = (first + index) * width
        left, right, top = frame.x(start), frame.x(start + width), frame.y(count)
        body.append(
            f'<rect class="bar s1" x="{left + 0.7:.1f}" width="{right - left - 1.4:.1f}" '
            f'y="{top:.1f}" height="{frame.y(0) - top:.1f}"><title>{format_tick(start)} to '
            f"{format_tick(start + width)}: {count}</title></rect>"
        )
    mean = frame.x(sum(values) / len(values))
    body.append(
        f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y1="{TOP}" y2="{frame.y(0)}"/>'
    )
    body.append(
        f'<text class="tick" x="{mean + 4:.1f}" y="{TOP + 9}">mean '
        f"{sum(values) / len(values):.1f}</text>"
    )
    return _svg(name, body)


def grouped_bars(
    name: str, groups: Sequence[tuple[str, Sequence[float]]], labels: Sequence[str], y_label: str
) -> Markup:
    """Groups (title, a share 0 .. 1 for each label) side by side, every bar with its label."""
    frame = Frame(0.0, float(len(groups)), 0.0, 1.05)
    width = 0.8 / len(labels)
    bars, x_ticks = [], []
    for index, (title, shares) in enumerate(groups):
        for bar, (label, share) in enumerate(zip(labels, shares, strict=True)):
            start = index + 0.1 + bar * width
            left, right, top = frame.x(start), frame.x(start + width), frame.y(share)
            bars.append(
                f'<rect class="bar s1" x="{left + 0.7:.1f}" width="{right - left - 1.4:.1f}" '
                f'y="{top:.1f}" height="{frame.y(0) - top:.1f}"><title>{escape(title)}, '
                f"{escape(label)}: {share:.1%}</title></rect>"
            )
            x_ticks.append((start + width / 2, label))
        bars.append(
            f'<text class="title" x="{frame.x(index + 0.5):.1f}" y="{HEIGHT - 6}" '
            f'text-anchor="middle">{escape(title)}</text>'
        )
    return _svg(name, frame.axes("", y_label, x_ticks=x_ticks) + bars)


def nice_step(raw: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``raw`` > 0."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * 0.999)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about ``count`` of them."""
    step = nice_step((high - low) / count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def format_tick(value: float) -> str:
    """Short form of an axis number."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _frame(xs: Sequence[float], ys: Sequence[float], pad_x: bool = True) -> Frame:
    def bounds(values: Sequence[float], margin: float) -> tuple[float, float]:
        low, high = min(values), max(values)
        span = (high - low) or max(abs(high), 1.0) * 0.2
        if high == low:
            return low - span / 2, high + span / 2
        return low - margin * span, high + margin * span

    return Frame(*bounds(xs, 0.05 if pad_x else 0.0), *bounds(ys, 0.06))


def _unbroken(curve: Series) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.xs, curve.ys, strict=True):
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((x, y))
    return [piece for piece in pieces if piece]


def _ys(at: float) -> str:
    return f'y1="{at:.1f}" y2="{at:.1f}"'


def _svg(name: str, body: list[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        f'aria-label="{escape(name)}">{"".join(body)}</svg>'
    )


def _key(labels: Sequence[tuple[str, str]]) -> Markup:
    if not labels:
        return Markup("")
    items = "".join(f'<li class="{style}">{escape(label)}</li>' for label, style in labels)
    return Markup(f'<ul class="key">{items}</ul>')
