"""The sections of the page that show answers: what training changed, in which order tokens appeared, rollouts.

Everything that came from a model or a data set is escaped here or in `strips`.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from unmask.report.data import Paired, Record, RunData
from unmask.report.gallery import emerging, is_picture, picture
from unmask.report.strips import board, difference, flowing, is_board, question, spaced, strip, symbol, traced

_FIXED, _BROKEN, _GROUPS_PER_STEP = 4, 2, 2
_LONGEST_PROMPT, _LONGEST_ANSWER = 600, 400  # characters, tokens
_LEGEND = (
    '<p class="quiet">Givens are bold. The deeper the colour, the earlier the cell was written; '
    "errors are underlined.</p>"
)


def prompt_text(item: Record) -> str:
    """A prompt as text, shortened in the middle; of a conversation, its last message."""
    prompt = question(item)
    if isinstance(prompt, list) and prompt:
        prompt = prompt[-1].get("content", "") if isinstance(prompt[-1], dict) else prompt[-1]
    if isinstance(prompt, list):  # typed parts of a multimodal message
        prompt = " ".join(str(part.get("text", "◇")) for part in prompt if isinstance(part, dict))
    text = "" if prompt is None else str(prompt)
    half = _LONGEST_PROMPT // 2
    return text if len(text) <= _LONGEST_PROMPT else f"{text[:half]} … {text[-half:]}"


def _tokens(item: Record) -> list[str]:
    tokens = item.get("tokens")
    if isinstance(tokens, list) and tokens:
        return [str(token) for token in tokens]
    return spaced(str(item.get("generation", item.get("completion", ""))))


def answer(item: Record, other: Record | None = None) -> str:
    """An answer as a picture, a board, or text; tokens that `other` does not have are marked."""
    if is_picture(item):
        return picture(item)
    if is_board(item):
        return board(item)
    tokens = _tokens(item)
    cut = '<span class="quiet"> …</span>' if len(tokens) > _LONGEST_ANSWER else ""
    tokens = tokens[:_LONGEST_ANSWER]
    text = flowing(tokens) if other is None else difference(_tokens(other)[:_LONGEST_ANSWER], tokens)
    return f'<div class="text">{text}{cut}</div>'


def _verdict(item: Record) -> str:
    judged = item.get("correct")
    if judged is None:
        return ""
    return '<span class="good">✓ right</span>' if judged else '<span class="wrong">✗ wrong</span>'


def _two(left: tuple[str, str], right: tuple[str, str], prompt: str | None) -> str:
    """A card with two answers beside each other; each is a (caption, picture)."""
    head = "" if prompt is None else f'<div class="prompt">{escape(prompt)}</div>'
    sides = "".join(f"<figure><figcaption>{caption}</figcaption>{body}</figure>" for caption, body in (left, right))
    return f'<article class="pair">{head}<div class="sides">{sides}</div></article>'


def _cards(cards: Sequence[str], boards: bool) -> str:
    return f'<div class="pairs{" boards" if boards else ""}">{"".join(cards)}</div>'


def changed(paired: Paired | None) -> str:
    """A few items that became right, and a few that became wrong."""
    if not paired or is_picture(paired.pairs[0][1]):  # pictures have their gallery
        return ""
    html = ""
    legend = _LEGEND
    for title, pairs, most in (
        ("Fixed by training", paired.between(False, True), _FIXED),
        ("Broken by training", paired.between(True, False), _BROKEN),
    ):
        if not pairs:
            continue
        shown = pairs[:most]
        boards = all(is_board(item) for two in shown for item in two)
        told = f"{len(shown)} of {len(pairs)}, in the order of the test set."
        if not boards:
            told += " What the other answer does not have is marked."
        html += f'<h2>{title}</h2><p class="quiet">{told}</p>{legend if boards else ""}'
        legend = "" if boards else legend
        cards = [
            _two(
                (f"before {_verdict(old)}", answer(old, new)),
                (f"after {_verdict(new)}", answer(new, old)),
                None if boards else prompt_text(new) + _truth(new),
            )
            for old, new in shown
        ]
        html += _cards(cards, boards)
    return html


def _truth(item: Record) -> str:
    truth = item.get("ground_truth")
    return f"\nExpected: {str(truth)[:120]}" if isinstance(truth, str | int | float) and str(truth) else ""


def order(data: RunData, paired: Paired | None) -> str:
    """Denoising strips: of an item that training fixed, before and after; else of what there is."""
    shown: list[tuple[str, Record]]
    if paired:
        candidates = [*paired.between(False, True), *paired.between(True, True), *paired.pairs]
        two = next((two for two in candidates if traced(two[0]) and traced(two[1])), None)
        shown = [("before", two[0]), ("after", two[1])] if two else []
    else:
        single = data.after or data.before
        found = [*reversed(data.rollouts)] if single is None else single["generations"]
        name = "a rollout of the last step" if single is None else "a test item"
        shown = [(name, item) for item in found if traced(item)][:1]
    if not shown:
        return ""
    if is_picture(shown[0][1]):
        films = "".join(f"<h3>{name} {_verdict(item)}</h3>{emerging(item)}" for name, item in shown)
        return (
            '<h2>How a picture emerges</h2><p class="quiet">Grey codes are still masked. Numbers: denoising steps.</p>'
            f'<div class="prompt">{escape(prompt_text(shown[0][1]))}</div>{films}'
        )
    grid = len(shown[0][1]["tokens"]) <= 32
    special = {symbol(str(token)) for _, item in shown for token in item["tokens"]}
    signs = "".join(
        f" {sign} {means}." for sign, means in (("¶", "ends a turn"), ("∅", "fills the rest")) if sign in special
    )
    what = "columns are slots of the answer" if grid else "each shows the whole answer"
    html = (
        f'<h2>In which order tokens appeared</h2><p class="quiet">Rows are denoising steps, {what}. Dots are still '
        f"masked; what a step wrote is highlighted.{signs}</p>"
        f'<div class="prompt">{escape(prompt_text(shown[0][1]))}</div>'
    )
    strips = "".join(
        f'<figure class="denoising"><figcaption>{name} {_verdict(item)}</figcaption>{strip(item)}</figure>'
        for name, item in shown
    )
    return f'{html}<div class="strips{" grids" if grid else ""}">{strips}</div>'


def rollouts(data: RunData) -> str:
    """Best and worst answer to the same prompt, at the start, in the middle and at the end of training."""
    steps = sorted({row["step"] for row in data.rollouts})
    if not steps:
        return ""
    html = (
        '<h2>Rollouts</h2><p class="quiet">The best and the worst of the answers that were drawn for the same prompt; '
        "prompts whose answers differ most in reward come first. The advantage pushes an answer up or down.</p>"
    )
    for step in sorted({steps[0], steps[len(steps) // 2], steps[-1]}):
        groups: dict[Any, list[Record]] = {}
        for row in data.rollouts:
            if row["step"] == step:
                groups.setdefault(row.get("prompt_index"), []).append(row)
        ranked = [sorted(group, key=_reward, reverse=True) for group in groups.values()]
        ranked.sort(key=lambda group: _reward(group[-1]) - _reward(group[0]))
        shown = ranked[:_GROUPS_PER_STEP]
        boards = all(is_board(row) or is_picture(row) for group in shown for row in (group[0], group[-1]))
        html += f"<h3>Step {step}</h3>{_cards([_siblings(group, boards) for group in shown], boards)}"
    return html


def _siblings(group: Sequence[Record], boards: bool) -> str:
    best, worst = group[0], group[-1]
    equal = _reward(best) == _reward(worst)
    names = ("one answer", "another") if equal else ("best", "worst")
    told = f"{len(group)} logged answers" + (", all with the same reward: nothing to learn from" if equal else "")
    head = told if boards and not is_picture(best) else f"{prompt_text(best)}\n— {told}"
    other = (None, None) if boards else (worst, best)
    sides = [
        (f"{name} {_scores(row)}", answer(row, against))
        for name, row, against in zip(names, (best, worst), other, strict=True)
    ]
    return _two(sides[0], sides[1], head)


def _scores(row: Record) -> str:
    """Reward and advantage; components where there are several, and statuses other than ok."""
    advantage = row.get("advantage")
    pushed = f' <span class="quiet">advantage {advantage:+.2f}</span>' if isinstance(advantage, int | float) else ""
    rewards, status = (row[key] if isinstance(row.get(key), dict) else {} for key in ("rewards", "status"))
    parts = [
        f"{name} {format(value, '.3g') if isinstance(value, int | float) else 'n/a'}"
        + ("" if status.get(name, "ok") == "ok" else f" ({status[name]})")
        for name, value in rewards.items()
        if len(rewards) > 1 or status.get(name, "ok") != "ok"
    ]
    more = f'<br><span class="quiet">{escape(", ".join(parts))}</span>' if parts else ""
    pushed = pushed.replace("-", "\N{MINUS SIGN}")
    return f"<b>{_reward(row):.3g}</b>{pushed}{more}"


def _reward(row: Record) -> float:
    value = row.get("reward")
    return float(value) if isinstance(value, int | float) else 0.0
