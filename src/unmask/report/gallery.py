"""Sections of the page that show pictures: the same captions before and after, one picture emerging, categories."""

import base64
import math
import struct
from collections.abc import Sequence
from html import escape
from typing import Any

from unmask.pictures import is_uri
from unmask.report.data import Paired, Record, RunData

_PER_CATEGORY, _MOST_FRAMES = 6, 12


def is_picture(item: Record) -> bool:
    """Whether an answer is a picture."""
    return is_uri(_source(item))


def picture(item: Record) -> str:
    """The picture of an answer."""
    return f'<img class="pixels" alt="" src="{escape(str(_source(item)))}">'


def _source(item: Record) -> Any:
    return item.get("generation", item.get("completion"))


def _question(item: Record) -> str:
    return str(item.get("question", item.get("prompt", "")))


def galleries(paired: Paired | None) -> str:
    """For some captions of each category the picture before and the one after, from the same draws."""
    pairs = [] if paired is None else [two for two in paired.pairs if all(map(is_picture, two))]
    if not pairs:
        return ""
    html = (
        '<h2>The same captions and draws, before and after</h2><p class="quiet">The first items of each category, left '
        "before and right after training. A picture is framed green if it is exactly what the caption says.</p>"
    )
    for category in dict.fromkeys(_category(two[1]) for two in pairs):
        shown: dict[str, tuple[Record, Record]] = {}
        members = [two for two in pairs if _category(two[1]) == category]
        for two in members:
            shown.setdefault(_question(two[1]), two)
        chosen = [*shown.values(), *(two for two in members if two not in shown.values())][:_PER_CATEGORY]
        cards = "".join(
            f'<figure><div class="two">{_framed(old)}{_framed(new)}</div><figcaption>{escape(_question(new))}'
            "</figcaption></figure>"
            for old, new in chosen
        )
        html += f'{f"<h3>{escape(category)}</h3>" if category else ""}<div class="gallery">{cards}</div>'
    return html


def _category(item: Record) -> str:
    return str(item.get("category") or "").replace("_", " ")


def _framed(item: Record) -> str:
    kind = {True: "right", False: "off"}.get(bool(item.get("correct")), "")
    seen = item.get("extracted")
    return f'<span class="{kind}" title="seen: {escape(str(seen or "nothing"))}">{picture(item)}</span>'


def categories(data: RunData) -> str:
    """Success per category, before and after, and how much the answers to one prompt differ."""
    results = [(name, result) for name, result in (("before", data.before), ("after", data.after)) if result]
    shares = {name: _shares(result["generations"]) for name, result in results}
    every = list(dict.fromkeys(category for counted in shares.values() for category in counted))
    html = ""
    if every:
        head = "".join(f'<th class="number">{name}</th><th class="wide"></th>' for name in shares)
        rows = ""
        for category in every:
            cells = ""
            for counted in shares.values():
                right, total = counted.get(category, (0, 0))
                share = right / max(1, total)
                cells += (
                    f'<td class="number" title="{right} of {total}">{100 * share:.1f} %</td>'
                    f'<td class="wide"><div class="bar"><i style="width:{100 * share:.2f}%"></i></div></td>'
                )
            rows += f"<tr><th>{escape(category)}</th>{cells}</tr>"
        html += (
            f'<h2>By category</h2><div class="scroll"><table class="plain"><tr><th></th>{head}</tr>{rows}</table></div>'
        )
    spread = [data.summary.get(f"diversity_{when}") for when in ("before", "after")]
    if all(isinstance(value, int | float) for value in spread):
        html += (
            f'<p class="quiet small">Diversity, the share of codes in which two pictures of one caption differ: '
            f"{spread[0]:.3f} before, {spread[1]:.3f} after.</p>"
        )
    return html


def _shares(generations: Sequence[Record]) -> dict[str, tuple[int, int]]:
    """Per category how many answers are right, and how many there are."""
    counted: dict[str, tuple[int, int]] = {}
    for item in generations:
        if category := _category(item):
            right, total = counted.get(category, (0, 0))
            counted[category] = right + bool(item.get("correct")), total + 1
    return counted


def emerging(item: Record) -> str:
    """One picture as it appears: codes that are not written yet are grey."""
    order, source = item["revealed_at"], str(_source(item))
    width, height = _size(source)
    columns = max(1, round(math.sqrt(len(order) * width / height)))
    rows = -(-len(order) // columns)
    steps = sorted({step for step in order if step >= 0})
    shown = (
        steps
        if len(steps) <= _MOST_FRAMES
        else [steps[round(i * (len(steps) - 1) / (_MOST_FRAMES - 1))] for i in range(_MOST_FRAMES)]
    )
    frames = ""
    for step in shown:
        hidden = "".join(f"M{slot % columns} {slot // columns}h1v1h-1z" for slot, at in enumerate(order) if at > step)
        frames += (
            f'<figure><svg viewBox="0 0 {columns} {rows}"><image href="{escape(source)}" width="{columns}" '
            f'height="{rows}" preserveAspectRatio="none"/><path class="veil" d="{hidden}"/></svg>'
            f"<figcaption>{step + 1}</figcaption></figure>"
        )
    return f'<div class="film">{frames}</div>'


def _size(source: str) -> tuple[int, int]:
    """Width and height of a PNG in a `data:` URI, from its header."""
    header = base64.b64decode(source.partition(",")[2][:44])
    return struct.unpack(">II", header[16:24]) if len(header) >= 24 else (1, 1)
