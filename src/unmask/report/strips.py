"""Pictures of answers: in which order their tokens appeared, 4x4 boards, and what differs between two answers."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape
from itertools import groupby
from typing import Any

_TIMES = "\N{MULTIPLICATION SIGN}"
_MOST_ROWS, _MOST_COLUMNS, _MOST_FRAMES = 18, 32, 8
_SPECIAL = re.compile(r"<\|?[A-Za-z_][\w ]*\|?>|\[(?:MASK|PAD|EOS|SEP|CLS)\]")
_SYMBOLS = {"endoftext": "∅", "im_end": "¶", "eot_id": "¶", "eos": "∅", "mdm_mask": "·", "mask": "·"}


def symbol(token: str) -> str | None:
    """A short sign for a special token (end of text, end of turn, mask, others); None for ordinary text."""
    if not _SPECIAL.fullmatch(token):
        return None
    return _SYMBOLS.get(token.strip("<|>[]").lower(), "◇")


def piece(token: str) -> str:
    """A token as escaped HTML: special tokens are signs that tell their name, line breaks are visible."""
    sign = symbol(token)
    if sign is not None:
        return f'<span class="sign" title="{escape(token)}">{sign}</span>'
    return escape(token)


def flowing(tokens: Sequence[str]) -> str:
    """Tokens as running text; repetitions of a special token are counted instead of shown."""
    return _flow([(token, "") for token in tokens])


def spaced(text: str) -> list[str]:
    """A text without recorded tokens, cut into special tokens, words and gaps."""
    return [part for part in re.split(r"(<\|\w+\|>|\s+)", text) if part]


def _flow(marked: Sequence[tuple[str, str]]) -> str:
    html = []
    for kind, part in groupby(marked, key=lambda pair: pair[1]):
        text = ""
        for token, run in groupby(token for token, _ in part):
            count = len(list(run))
            many = symbol(token) is not None and count > 3
            text += piece(token) * (1 if many else count) + (
                f'<span class="quiet">{_TIMES}{count}</span>' if many else ""
            )
        html.append(f'<span class="{kind}">{text}</span>' if kind else text)
    return "".join(html)


def traced(item: dict[str, Any]) -> bool:
    """Whether it is known at which step each token of an answer appeared."""
    tokens, order = item.get("tokens"), item.get("revealed_at")
    return (
        isinstance(tokens, list)
        and isinstance(order, list)
        and len(tokens) == len(order) > 0
        and all(isinstance(at, int) for at in order)
        and any(at >= 0 for at in order)
    )


def strip(item: dict[str, Any]) -> str:
    """Denoising steps downwards: new tokens stand out, masks are dots.

    Up to 32 slots: a grid with a column per slot. More: the answer as running text, once per shown step. Steps in
    between are left out where there are too many; what they wrote counts as new in the next one that is shown.
    """
    if not traced(item):
        return '<p class="quiet">No trace was recorded.</p>'
    tokens, order = item["tokens"], item["revealed_at"]
    grid = len(tokens) <= _MOST_COLUMNS
    steps = sorted({step for step in order if step >= 0})
    shown = _spread(steps, _MOST_ROWS if grid else _MOST_FRAMES)
    rows, last = [], -1
    for step in shown:
        kinds = ["new" if last < at <= step else "old" if at <= step else "mask" for at in order]
        new = kinds.count("new")
        if grid:
            cells = "".join(
                f'<td class="{kind}">{"·" if kind == "mask" else piece(token.strip() or "␣")}</td>'
                for token, kind in zip(tokens, kinds, strict=True)
            )
        else:
            cells = f'<td class="text">{_frame(tokens, kinds)}</td>'
        rows.append(f'<tr><th title="{new} new">{step + 1}</th>{cells}</tr>')
        last = step
    left_out = len(steps) - len(shown)
    more = f'<p class="quiet small">{left_out} of {len(steps)} steps are not shown.</p>' if left_out else ""
    return f'<div class="scroll"><table class="{"strip" if grid else "frames"}">{"".join(rows)}</table></div>{more}'


def _frame(tokens: Sequence[str], kinds: Sequence[str]) -> str:
    """An unfinished answer as running text. The special tokens that fill its end are counted, not shown."""
    body = len(tokens)
    while body and symbol(tokens[body - 1]) is not None and tokens[body - 1] == tokens[-1]:
        body -= 1
    shown = [("·" if kind == "mask" else token, kind) for token, kind in zip(tokens[:body], kinds[:body], strict=True)]
    tail = list(kinds[body:])
    written, masked = len(tail) - tail.count("mask"), tail.count("mask")
    html = _flow(shown)
    if written:
        kind = "new" if "new" in tail else "quiet"
        html += f'<span class="{kind}">{piece(tokens[-1])}{_TIMES}{written}</span>'
    return html + (f'<span class="mask">·{_TIMES}{masked}</span>' if masked else "")


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def question(item: dict[str, Any]) -> Any:
    """The prompt of a generation or of a rollout."""
    return item.get("question", item.get("prompt"))


def is_board(item: dict[str, Any]) -> bool:
    """Whether an answer is a 4x4 board: a prompt of 16 digits (0: blank) and 16 tokens of one digit."""
    prompt, tokens = question(item), item.get("tokens")
    return (
        isinstance(prompt, str)
        and re.fullmatch(r"[0-9]{16}", prompt) is not None
        and isinstance(tokens, list)
        and len(tokens) >= 16
        and all(re.fullmatch(r"[0-9]", token) for token in tokens[:16])
        and all(symbol(token) for token in tokens[16:])
    )


def board(item: dict[str, Any]) -> str:
    """A 4x4 board: givens bold, the rest shaded by when it was written (deep: early), errors underlined.

    An error differs from the solution where it is known; else it clashes with its row, column or box.
    """
    givens, tokens = question(item), item["tokens"][:16]
    order = item["revealed_at"][:16] if traced(item) else [0] * 16
    truth = item.get("ground_truth")
    if isinstance(truth, str) and re.fullmatch(r"[0-9]{16}", truth):
        wrong = {i for i in range(16) if tokens[i] != truth[i]}
    else:
        wrong = {i for i in _clashes(tokens) if givens[i] == "0"}
    written = sorted({at for given, at in zip(givens, order, strict=True) if given == "0"})
    place = {at: number for number, at in enumerate(written)}
    cells = []
    for i, (given, token, at) in enumerate(zip(givens, tokens, order, strict=True)):
        bad = " bad" if i in wrong or (given != "0" and token != given) else ""
        if given != "0":
            cells.append(f'<td class="given{bad}">{piece(token)}</td>')
            continue
        early = 1 - place[at] / max(1, len(written) - 1)
        tip = f"step {at + 1}" if traced(item) else ""
        cells.append(f'<td class="filled{bad}" style="--t:{early:.2f}" title="{tip}">{piece(token)}</td>')
    rows = "".join(f"<tr>{''.join(cells[r * 4 : r * 4 + 4])}</tr>" for r in range(4))
    return f'<table class="board">{rows}</table>'


def _clashes(tokens: Sequence[str]) -> set[int]:
    """Cells that repeat a digit of their row, column or box."""
    units = []
    for n in range(4):
        corner = n // 2 * 8 + n % 2 * 2
        units += [[4 * n + j for j in range(4)], [4 * j + n for j in range(4)], [corner + d for d in (0, 1, 4, 5)]]
    return {cell for unit in units for cell in unit if sum(tokens[other] == tokens[cell] for other in unit) > 1}


def difference(old: Sequence[str], new: Sequence[str]) -> str:
    """The new tokens as running text; those that are not in the old ones, in order, are marked."""
    marked: list[tuple[str, str]] = []
    for kind, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "delete":
            marked += [(token, "" if kind == "equal" else "changed") for token in new[start:end]]
    return _flow(marked)
