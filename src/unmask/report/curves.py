"""Curves as inline SVG, drawn by hand: colours are CSS variables, so they follow the page's light and dark theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

COLOURS = 8  # --c0 .. --c7 in style.css
_MOST_POINTS = 300
_MOST_TIPS = 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 8, 20


@dataclass(frozen=True)
class Line:
    """One curve over training steps.

    Args:
        label: shown in the legend where there are several lines.
        low, high: the band around it, one value per point.
        dots: every point is marked: few, exact measurements.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dots: bool = False


def chart(
    lines: Sequence[Line], name: str, width: int = 320, height: int = 150, unit: bool = False, first: int = 0
) -> str:
    """A plot as an HTML figure: title, legend, SVG.

    Long curves are averaged to 300 points; noisy ones are drawn faintly, with a running mean on top.

    Args:
        width, height: size at which the text has its natural size, in pixels; the picture scales with the page.
        unit: the vertical axis is the unit interval.
        first: colour of the first line.
    """
    coloured = [(line, (first + number) % COLOURS) for number, line in enumerate(lines) if line.steps]
    if not coloured:
        return ""
    drawn = [line for line, _ in coloured]
    values = [v for line in drawn for part in (line.values, line.low or (), line.high or ()) for v in part]
    bottom, top = (0.0, 1.0) if unit and min(values) >= 0 and max(values) <= 1 else _bounds(min(values), max(values))
    left = min(line.steps[0] for line in drawn)
    right = max(max(line.steps[-1] for line in drawn), left + 1)

    def x(step: float) -> float:
        return round(_LEFT + (step - left) / (right - left) * (width - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_TOP + (top - value) / (top - bottom) * (height - _TOP - _BOTTOM), 1)

    parts = []
    for tick in ticks(bottom, top, 3 if height < 200 else 5):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{width - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y(tick) + 3.5}" text-anchor="end">{label(tick)}</text>')
    for tick in ticks(left, right, 4 if width < 500 else 8):
        if tick == int(tick):
            parts.append(f'<text x="{x(tick)}" y="{height - 4}" text-anchor="middle">{label(tick)}</text>')
    parts += [f'<g style="--c:var(--c{colour})">{_draw(line, x, y)}</g>' for line, colour in coloured]
    shown = ", ".join(f"{line.label} from {label(line.values[0])} to {label(line.values[-1])}" for line in drawn)
    legend = "".join(
        f'<span class="key" style="--c:var(--c{colour})">{escape(line.label)}</span>'
        for line, colour in coloured
        if len(lines) > 1
    )
    keys = f'<p class="legend">{legend}</p>' if legend else ""
    last = "" if len(lines) > 1 else f"<b>{label(drawn[0].values[-1])}</b>"
    return (
        f'<figure class="chart"><figcaption><span>{escape(name)}</span>{last}</figcaption>{keys}'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}: {escape(shown)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _draw(line: Line, x, y) -> str:
    steps, values = _thin(line.steps, line.values)
    parts = []
    if line.low and line.high:
        over = [f"{x(s)} {y(v)}" for s, v in zip(line.steps, line.high, strict=True)]
        under = [f"{x(s)} {y(v)}" for s, v in zip(line.steps, line.low, strict=True)]
        parts.append(f'<path class="band" d="M{"L".join([*over, *reversed(under)])}Z"/>')
    noisy = not line.dots and _noisy(values)
    path = "L".join(f"{x(s)} {y(v)}" for s, v in zip(steps, values, strict=True))
    parts.append(f'<path class="{"raw" if noisy else "line"}" d="M{path}"/>')
    if noisy:
        path = "L".join(f"{x(s)} {y(v)}" for s, v in zip(steps, _smooth(values), strict=True))
        parts.append(f'<path class="line" d="M{path}"/>')
    if line.dots or len(values) <= _MOST_TIPS:
        seen = "dot" if line.dots or len(values) == 1 else "tip"
        parts += [
            f'<circle class="{seen}" cx="{x(s)}" cy="{y(v)}" r="{3.5 if seen == "dot" else 5}">'
            f"<title>step {label(s)}: {label(v)}</title></circle>"
            for s, v in zip(steps, values, strict=True)
        ]
    return "".join(parts)


def _bounds(low: float, high: float) -> tuple[float, float]:
    """A range with some air; it starts at 0 where that costs little room."""
    if low >= 0 and low <= 0.4 * high:
        return 0.0, high * 1.06 or 1.0
    air = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - air, high + air


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round numbers (1, 2 or 5 times a power of ten apart) in [low, high]."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    gap = min((m * power for m in (1, 2, 5, 10)), key=lambda gap: abs(math.log(gap / rough)))
    start, end = math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9)
    return [round(n * gap, 12) for n in range(start, end + 1)]


def label(value: float) -> str:
    """A number of about three digits: 0.532, 1.2k, 3e-05."""
    for size, unit, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= size:
            return f"{value / unit:.3g}{suffix}".replace("-", "\N{MINUS SIGN}")
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _thin(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of consecutive points, so that at most 300 are left."""
    size = -(-len(values) // _MOST_POINTS)

    def means(part: Sequence[float]) -> list[float]:
        return [sum(part[i : i + size]) / len(part[i : i + size]) for i in range(0, len(part), size)]

    return means(steps), means(values)


def _noisy(values: Sequence[float]) -> bool:
    """Whether a curve turns at more than a fifth of its points, and has enough of them for a running mean."""
    rises = [b - a for a, b in pairwise(values)]
    return len(values) >= 24 and sum(a * b < 0 for a, b in pairwise(rises)) > len(values) / 5


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a tenth of the curve, cut off at the ends."""
    half, n = max(1, len(values) // 20), len(values)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = [(max(0, i - half), min(n, i + half + 1)) for i in range(n)]
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]
