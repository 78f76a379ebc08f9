r"""The reward of answers that are mathematics: two LaTeX texts are compared by rules, then by a second opinion.

The rules are our own and total: no expression is evaluated, so no answer can make them slow. They say *equal* for a
reason and *unequal* for want of one; then math-verify (an optional extra) is asked, in processes that can be killed
(`unmask.rewards.verifier`).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar

from unmask.errors import UserError
from unmask.rewards.base import Row, Score
from unmask.rewards.text import TEXT_MACRO, TextReward, Unreadable, require_span, unwrapped, visible_text
from unmask.rewards.verifier import Verdict, installed, verify

LONGEST_SPAN = 1024
"""Characters of an answer that is compared."""

Reason = str
"""Which rule said equal: `strings`, `prefix`, `rationals` or `lists`."""


def agreement(answer: str, gold: str) -> Reason | None:
    r"""The first rule that says equal; None if none does.

    1. `strings`: equal after `plain`.
    2. `prefix`: equal once `x=` or `x\in` (one letter) is dropped on the side that has it, if the other has no `=`.
    3. `rationals`: integers, decimals, fractions and mixed numbers of equal value, compared exactly.
    4. `lists`: elements that agree by 1 or 3. Without brackets and in `\{..\}` order does not matter but multiplicity
       does; in `(..)`, `[..]` and half-open intervals order and ends matter.

    What follows a dropped prefix is compared by 3 and 4 too.
    """
    ours, golds = undressed(answer), undressed(gold)
    if plain(ours) == plain(golds):
        return "strings"
    ours, golds = _without_prefix(ours, golds), _without_prefix(golds, ours)
    if plain(ours) == plain(golds):
        return "prefix"
    value = rational(ours)
    if value is not None:
        return "rationals" if value == rational(golds) else None
    return "lists" if (members := collection(ours)) is not None and members == collection(golds) else None


# `\\` starts a row of a matrix; it is read first so that its second half starts no other macro.
_DRESS = re.compile(
    r"(?P<row>\\\\)|\\(?:left|right)(?![A-Za-z])|\\?[$%]|\\[()\[\]]"
    r"|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|\u00b0"
)
_SPACE = re.compile(
    r"(?P<row>\\\\)|\\[ ,;:>!]|\\(?:q?quad|(?:neg)?thinspace|medspace|thickspace|enspace)(?![A-Za-z])"
    "|[~\u00a0\u2009\u202f]"
)
# A blank may follow the LaTeX form only: in plain text `3, 500` is a list of two.
_SEPARATOR = "(?:,\\\\!\\s*|\\{,\\}|,|\\\\,|\\\\!|\u2009|\u202f)"
_UNIT_MACRO = TEXT_MACRO + r"\{[A-Za-z\s.'/-]*\}(?:\s*\^\s*(?:[0-9]|\{[0-9]\}))?"
_THOUSANDS = re.compile(
    rf"(?P<whole>[+-]?\s*[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+)(?P<rest>(?:\.[0-9]*)?\s*(?:{_UNIT_MACRO}\.?)?)"
)


def undressed(text: str) -> str:
    r"""A LaTeX text without what only dresses it: `$`, `%`, `\( \) \[ \]`, `\left \right`, degrees, spacing macros.

    The commas of a number in groups of three go too, since a comma is the separator of lists afterwards.
    """
    text = _DRESS.sub(lambda part: part["row"] or "", text.replace("\u2212", "-")).strip()
    if number := _THOUSANDS.fullmatch(text):
        text = re.sub(_SEPARATOR, "", number["whole"]) + number["rest"]
    return " ".join(_SPACE.sub(lambda part: part["row"] or " ", text).split())


_UNIT = re.compile(rf"(?P<number>.*?)\s*{_UNIT_MACRO}")
_NUMERIC = re.compile(r"(?:[0-9.+\-*/^{}()\s]|\\(?:[dtc]?frac|sqrt|pi)(?![A-Za-z]))*")
_SAME = ((r"\\[dtc]frac(?![A-Za-z])", r"\\frac"), (r"\\(l|g|n)eq(?![A-Za-z])", r"\\\1e"))
_SCRIPT = re.compile(r"([_^])\s*\{\s*([A-Za-z0-9])\s*\}")
_DOTS = ".\u2026"


def plain(text: str) -> str:
    r"""An undressed text in one spelling.

    A unit in a text macro, with an optional power, is dropped after a number; other text macros are unwrapped; trailing
    dots are dropped; `\dfrac \tfrac \cfrac` are `\frac` and `\leq \geq \neq` are `\le \ge \ne`; `\frac12` and `\sqrt3`
    get braces, `_{8}` and `^{2}` lose them; white space goes, except between digits, which it keeps apart.
    """
    text = text.strip().rstrip(_DOTS).strip()
    if (unit := _UNIT.fullmatch(text)) and _is_number(unit["number"]):
        text = unit["number"]
    text = unwrapped(text).strip().rstrip(_DOTS).strip()
    for pattern, spelling in _SAME:
        text = re.sub(pattern, spelling, text)
    text = _SCRIPT.sub(r"\1\2", _braced(text))
    return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text)


def _is_number(text: str) -> bool:
    return _NUMERIC.fullmatch(text) is not None and re.search(r"[0-9]|\\pi", text) is not None


_ARGUMENTS = re.compile(r"\\(?:(?P<frac>frac)|sqrt)(?![A-Za-z])")


def _braced(text: str) -> str:
    r"""Braces around the arguments of `\frac` and `\sqrt` that have none: `\frac12`, `\frac{270}7`, `\sqrt3`.

    From the right, so that the arguments inside others are done before these.
    """
    for macro in reversed(list(_ARGUMENTS.finditer(text))):
        at = macro.end()
        for _ in range(2 if macro["frac"] else 1):
            start, end = _argument(text, at)
            if end is None:
                break
            content = text[start:end] if text[start] == "{" else "{" + text[start:end] + "}"
            text = text[:at] + content + text[end:]
            at += len(content)
    return text


def _argument(text: str, at: int) -> tuple[int, int | None]:
    """Where the argument behind `at` starts and ends: a group, a macro or a character; no end if there is none."""
    while at < len(text) and text[at].isspace():
        at += 1
    if text[at : at + 1] == "{":
        depth = 0
        for end in range(at, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return at, end + 1
        return at, None
    token = re.compile(r"\\[A-Za-z]+|[A-Za-z0-9]").match(text, at)
    if token is None:
        return at, None
    if token[0] == r"\sqrt":  # braced already, as it stands further right
        start, end = _argument(text, token.end())
        return at, end if text[start : start + 1] == "{" else token.end()
    return at, token.end()


_PREFIX = re.compile(r"\s*[A-Za-z]\s*(?:=|\\in(?![A-Za-z]))\s*(?P<rest>\S.*)")


def _without_prefix(text: str, other: str) -> str:
    if "=" in other or not (match := _PREFIX.fullmatch(text)):
        return text
    return match["rest"]


_FRACTION = re.compile(
    r"(?P<outer>[+-]?)(?:(?P<whole>[0-9]*)\\frac\{(?P<top>[+-]?[0-9]+)\}\{(?P<bottom>[+-]?[0-9]+)\}"
    r"|(?P<over>[0-9]+)/(?P<under>[+-]?[0-9]+))"
)
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


def rational(text: str) -> Fraction | None:
    r"""The exact value of a number: integer, decimal, `a/b`, `\frac{a}{b}`, mixed `2\frac{1}{3}`; None for all else."""
    text = plain(text)
    if _DECIMAL.fullmatch(text):
        return Fraction(text.rstrip("."))
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    top, bottom = (match["top"], match["bottom"]) if match["top"] else (match["over"], match["under"])
    # A mixed number has no sign inside: 2\frac{-1}{3} is a product, if anything.
    if int(bottom) == 0 or (match["whole"] and not (top.isdigit() and bottom.isdigit())):
        return None
    value = int(match["whole"] or 0) + Fraction(int(top), int(bottom))
    return -value if match["outer"] == "-" else value


@dataclass(frozen=True)
class Collection:
    """A list, tuple, interval or set in a form in which equal ones are equal.

    Args:
        ends: the brackets; empty for a list without any.
        members: in order, or counted where order does not matter.
    """

    ends: str
    members: object


_BRACKETS = re.compile(r"\\\{|\\\}|[{}()\[\],]")


def split(text: str) -> tuple[str, list[str]]:
    r"""The brackets around a text, if one pair holds all of it, and its parts between top-level commas.

    Brackets are `(..)`, `[..]`, half-open `(..]`, `[..)` and `\{..\}`.
    """
    text = text.strip()
    depth, cuts, first_close = 0, [], len(text)
    for mark in _BRACKETS.finditer(text):
        if mark[0] == ",":
            cuts.append((mark.start(), depth))
        else:
            depth += 1 if mark[0] in (r"\{", "{", "(", "[") else -1
            if depth == 0:
                first_close = min(first_close, mark.end())
    width = 2 if text.startswith(r"\{") else 1
    start, end = text[:width], text[-width:] if len(text) >= 2 * width else ""
    held = first_close == len(text) and depth == 0
    if held and ((start in ("(", "[") and end in (")", "]")) or (start == r"\{" and end == r"\}")):
        inside = [at for at, level in cuts if level == 1]
        bounds = [width - 1, *inside, len(text) - width]
        return start + end, [text[a + 1 : b] for a, b in pairwise(bounds)]
    bounds = [-1, *(at for at, level in cuts if level == 0), len(text)]
    return "", [text[a + 1 : b] for a, b in pairwise(bounds)]


def collection(text: str) -> Collection | None:
    """A text as a collection; None for a single value without brackets."""
    ends, parts = split(text)
    if not ends and len(parts) == 1:
        return None
    members = [plain(part) if (value := rational(part)) is None else value for part in parts]
    return Collection(ends, Counter(members) if ends in ("", r"\{\}") else members)


def is_final(answer: str, gold: str) -> bool:
    """Whether unequal by the rules stays unequal: math-verify would be slow here, or is known to be wrong.

    Slow: long texts, factorials, towers, large exponents and numbers, deep nesting, sums and integrals that the gold
    does not have. Wrong: collections of different length, numbers with a base (whose subscript it leaves out), words
    (which it reads as products of their letters), equations with different left sides.
    """
    ours, golds = undressed(answer), undressed(gold)
    return (
        max(len(answer), len(gold)) > 256
        or any(re.search(pattern, answer) for pattern in _SLOW)
        or _depth(answer) > 32
        or any(macro in answer and macro not in gold for macro in (r"\int", r"\sum", r"\prod"))
        or len(split(ours)[1]) != len(split(golds)[1])
        or _BASE.search(ours + " " + golds) is not None
        or any(re.fullmatch("[A-Za-z]{3,}", plain(side)) for side in (ours, golds))
        or ("=" in ours and "=" in golds and plain(ours.partition("=")[0]) != plain(golds.partition("=")[0]))
    )


_SLOW = (
    "!",
    r"(?:\^|\*\*)\s*[{(][^})]*(?:\^|\*\*)",  # towers, braced ...
    r"(?:\^|\*\*)\s*[A-Za-z0-9\\]+\s*(?:\^|\*\*)",  # ... and bare
    r"(?:\^|\*\*)\s*[{(\s]*[+-]?\s*[0-9]{4}",
    r"[0-9]{31}",
)
_BASE = re.compile(r"[0-9]\s*_\s*(?:[0-9]|\{)")


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest


@dataclass(frozen=True)
class Math(TextReward):
    """1 if the answer is the row's `answer`, both LaTeX; else 0. A span of over 1,024 characters is invalid.

    `details.decided_by` is the rule that said equal (`agreement`), `rules` where none did and nobody else was asked, or
    `math-verify`. An answer with which math-verify does not end within a second is invalid, with reason `timeout`.

    Args:
        second_opinion: ask math-verify where no rule says equal; null: if it is installed.

    Raises:
        UserError: math-verify is wanted and not installed. On call: a row has no `answer` that is a text or a number.
    """

    name: ClassVar[str] = "math"

    second_opinion: bool | None = None

    def __post_init__(self):
        if self.second_opinion and not installed():
            raise UserError("reward math: the second opinion needs `pip install 'unmask[math]'`; or go without it")

    def __call__(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        read = [self._by_rules(completion, row) for completion, row in zip(completions, rows, strict=True)]
        verdicts = iter(verify([(item.gold, item.answer) for item in read if isinstance(item, Open)]))
        return [item.score(next(verdicts)) if isinstance(item, Open) else item for item in read]

    def read(self, text: str, row: Row) -> Score:
        item = self.by_rules(text, row)
        return item.score(verify([(item.gold, item.answer)])[0]) if isinstance(item, Open) else item

    def by_rules(self, text: str, row: Row) -> "Score | Open":
        """The score of visible text, or the pair about which math-verify is to be asked."""
        gold, answer = gold_text(row), require_span(text)
        if len(answer) > LONGEST_SPAN:
            raise Unreadable(f"the answer is longer than {LONGEST_SPAN} characters")
        shown = answer[:128]
        if rule := agreement(answer, gold):
            return Score.ok(1, answer=shown, decided_by=rule)
        asks = installed() if self.second_opinion is None else self.second_opinion
        if not asks or is_final(answer, gold):
            return Score.ok(0, answer=shown, decided_by="rules")
        return Open(undressed(answer), undressed(gold), shown)

    def _by_rules(self, completion: str, row: Row) -> "Score | Open":
        try:
            return self.by_rules(visible_text(completion, self.end_tokens, self.mask_tokens), row)
        except Unreadable as error:
            return Score.invalid(str(error))


@dataclass(frozen=True)
class Open:
    """An answer that no rule found equal to the gold.

    Args:
        answer, gold: undressed.
        shown: of the answer, for the record.
    """

    answer: str
    gold: str
    shown: str

    def score(self, verdict: Verdict) -> Score:
        """The score after the second opinion."""
        if verdict.failure is not None:
            return Score.infra_error(verdict.failure)
        if verdict.ended is not None:
            return Score.invalid(verdict.ended, answer=self.shown, decided_by="math-verify")
        return Score.ok(verdict.equal, answer=self.shown, decided_by="math-verify")


def gold_text(row: Row) -> str:
    """The gold of a row.

    Raises:
        UserError: it has none.
    """
    gold = row.get("answer")
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        return str(gold)
    if not isinstance(gold, str) or not plain(undressed(gold)):
        raise UserError(
            f"reward math: row {row.get('id', '?')} needs a column 'answer' with a text that is not empty, not {gold!r}"
        )
    return gold
