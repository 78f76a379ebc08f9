r"""How text answers are read, and the rewards that need nothing more: number, format, integer, boxed.

A completion is first cut to its *visible text*; of that an *answer span* is taken: the last non-empty `\boxed{..}`,
else the last non-empty `<answer>`. There is no search of the prose, and no falling back to an earlier box when the
last one cannot be read: whoever hedges is not paid for it.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, Self

from unmask.errors import UserError
from unmask.rewards.base import PerItem, Row, Score

END_TOKENS = ("<|eot_id|>", "<|endoftext|>", "<|im_end|>")
MASK_TOKENS = ("<|mdm_mask|>", "<|mask|>", "[MASK]")
LONGEST = 65_536
"""Characters of visible text that a reward reads."""


class Unreadable(Exception):
    """The model's output cannot be read; the message is the reason. Stays inside the rewards."""


def cut(completion: str, end_tokens: Sequence[str] = END_TOKENS) -> str:
    """What stands before the first end token."""
    ends = [at for token in end_tokens if (at := completion.find(token)) >= 0]
    return completion[: min(ends)] if ends else completion


def visible_text(
    completion: str, end_tokens: Sequence[str] = END_TOKENS, mask_tokens: Sequence[str] = MASK_TOKENS
) -> str:
    """The part of a completion that a reader sees.

    Raises:
        Unreadable: a mask token is left in it, or it is longer than 65,536 characters.
    """
    text = cut(completion, end_tokens)
    if len(text) > LONGEST:
        raise Unreadable(f"longer than {LONGEST} characters")
    if any(token in text for token in mask_tokens):
        raise Unreadable("a mask token is left")
    return text


# Escaped braces are printed, they group nothing; so they are read over.
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\{)|\\[{}]|(?P<open>\{)|(?P<close>\})")
_ANSWER_TAGS = re.compile(r"</?answer>")


def boxes(text: str) -> list[str]:
    r"""The contents of all balanced, non-empty `\boxed{..}` and `\fbox{..}`, in the order in which they open.

    One pass with a stack, as a scan per opening brace would be quadratic. Empty is: nothing but blanks and dots.
    """
    return [text[start:end] for start, end in _box_spans(text) if not _is_empty(text[start:end])]


def answer_span(text: str) -> str | None:
    """The part of visible text that is the answer, stripped; None if there is none.

    The last non-empty box (of nested boxes the inner one, since it opens later), else the content of the last non-empty
    `<answer>`, which runs to the end if it is not closed.
    """
    for start, end in reversed(_box_spans(text)):
        if not _is_empty(text[start:end]):
            return text[start:end].strip()
    close = len(text)
    for tag in reversed(list(_ANSWER_TAGS.finditer(text))):
        if tag[0] == "</answer>":
            close = tag.start()
        elif not _is_empty(text[tag.end() : close]):
            return text[tag.end() : close].strip()
    return None


def _box_spans(text: str) -> list[tuple[int, int]]:
    spans, stack = [], []
    for match in _BRACES.finditer(text):
        if match["box"] or match["open"]:
            stack.append(match.end() if match["box"] else None)
        elif match["close"] and stack and (start := stack.pop()) is not None:
            spans.append((start, match.start()))
    return sorted(spans)


def _is_empty(text: str) -> bool:
    return not text.strip(" \t\r\n\f\v\u00a0.\u2026")


@dataclass(frozen=True)
class TextReward(PerItem, ABC):
    """A reward on the visible text. Subclasses implement `read`.

    Args:
        end_tokens: the visible text ends before the first of these.
        mask_tokens: one of these in the visible text makes a completion invalid.
    """

    end_tokens: tuple[str, ...] = END_TOKENS
    mask_tokens: tuple[str, ...] = MASK_TOKENS

    def for_tokens(self, end: Sequence[str], mask: Sequence[str] = ()) -> Self:
        return replace(
            self,
            end_tokens=tuple(dict.fromkeys((*self.end_tokens, *filter(None, end)))),
            mask_tokens=tuple(dict.fromkeys((*self.mask_tokens, *filter(None, mask)))),
        )

    def judge(self, completion: str, row: Row) -> Score:
        try:
            return self.read(visible_text(completion, self.end_tokens, self.mask_tokens), row)
        except Unreadable as error:
            return Score.invalid(str(error))

    @abstractmethod
    def read(self, text: str, row: Row) -> Score:
        """The score of visible text; may raise `Unreadable`, which is scored as invalid."""


def require_span(text: str) -> str:
    """The answer span.

    Raises:
        Unreadable: there is none.
    """
    span = answer_span(text)
    if span is None:
        raise Unreadable("no answer")
    return span


TEXT_MACRO = r"\\(?:text(?:bf|rm|it)?|mathrm|mathbf|mbox|boldsymbol|bm)\s*"
_WRAPPED = re.compile(TEXT_MACRO + r"\{([^{}]*)\}")
_DROPPED = re.compile(r"(?:\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\[()\[\]]|\\?[$%]|[€£])+")
_NUMBER_WORDS = re.compile(r"hundred|thousand|million|billion|trillion|dozen", re.IGNORECASE)
_SEPARATOR = "(?:,\\\\!|,|\\{,\\}|\\\\,|\\\\!|\u2009|\u202f)"
_WHOLE = rf"(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>-\s*)?(?:"
    rf"\\[dt]?frac\s*\{{\s*(?P<top>-?{_WHOLE})\s*\}}\s*\{{\s*(?P<bottom>-?{_WHOLE})\s*\}}"
    rf"|(?P<over>{_WHOLE})\s*/\s*(?P<under>{_WHOLE})(?!\.[0-9])"
    rf"|(?P<whole>{_WHOLE})(?:\.(?P<part>[0-9]*))?"
    rf"|\.(?P<bare>[0-9]+))"
)
_NOT_IN_REST = re.compile(r"[0-9*/^_+\\{}()\[\]]|[^\x00-\x7f°¢]")


def unwrapped(text: str) -> str:
    r"""A text without the macros around its words: `\text{..}`, `\mathrm{..}`, `\mbox{..}`, bold ones."""
    while (inner := _WRAPPED.sub(r"\1", text)) != text:
        text = inner
    return text


def read_number(span: str) -> Fraction:
    """The one number of an answer span, exactly; units may stand around it, arithmetic may not.

    Raises:
        Unreadable: none, several, or one that would have to be guessed.
    """
    if len(span) > 256:
        raise Unreadable("the answer is longer than 256 characters")
    text = unwrapped(span.replace("\u2212", "-").replace("\u00a0", " ")).rpartition("=")[2]
    if _NUMBER_WORDS.search(text):
        raise Unreadable("a number word")
    # A dropped sign must not join two numbers: 1$2 is not 12.
    text = _DROPPED.sub(lambda m: " " if re.match("[0-9.,]", m.string[m.start() - 1 : m.start()]) else "", text)
    match = _NUMBER.search(text)
    if match is None:
        raise Unreadable("no number")
    before, after = text[: match.start()], text[match.end() :]
    if _NOT_IN_REST.search(before + " " + after) or before.endswith("-"):
        raise Unreadable("more than one number")
    if match["sign"] and before[-1:].isalnum():
        raise Unreadable("a sign that may be a hyphen")

    def whole(group: str) -> int:
        digits = re.sub(_SEPARATOR, "", match[group])
        if len(digits.lstrip("-")) > 30:
            raise Unreadable("more than 30 digits")
        return int(digits)

    top, bottom = ("top", "bottom") if match["top"] else ("over", "under")
    if match[top]:
        if whole(bottom) == 0:
            raise Unreadable("division by zero")
        value = Fraction(whole(top), whole(bottom))
    else:
        part = match["bare"] or match["part"] or ""
        if len(part) > 30:
            raise Unreadable("more than 30 digits")
        value = Fraction(whole("whole") if match["whole"] else 0) + Fraction(int(part or "0"), 10 ** len(part))
    return -value if match["sign"] else value


_GOLD = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[0-9]+/0*[1-9][0-9]*)")


def gold_number(answer: Any) -> Fraction:
    """The gold of a row: what stands after the last `####`, or all of it, without `,` and `$`, exactly.

    Raises:
        ValueError: it is not a number.
    """
    if isinstance(answer, int | Fraction) and not isinstance(answer, bool):
        return Fraction(answer)
    if isinstance(answer, float) and math.isfinite(answer):
        return Fraction(repr(answer))  # .1 means 1/10, not the nearest binary fraction
    text = answer.rpartition("####")[2] if isinstance(answer, str) else ""
    text = text.replace("\u2212", "-").replace(",", "").replace("$", "").strip()
    if not _GOLD.fullmatch(text):
        raise ValueError(f"no number in the answer {str(answer)[-60:]!r}")
    return Fraction(text)


@dataclass(frozen=True)
class Number(TextReward):
    """1 if the answer is the number of the row's `answer`, compared exactly; else 0.

    Raises:
        UserError: the row has no `answer` that is a number (tasks check this when they load their data).
    """

    name: ClassVar[str] = "number"

    def read(self, text: str, row: Row) -> Score:
        try:
            gold = gold_number(row["answer"])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"reward number: row {row.get('id', '?')} needs a column 'answer' that is or ends in a number: {error}"
            ) from error
        number = read_number(require_span(text))
        return Score.ok(number == gold, answer=str(number))


@dataclass(frozen=True)
class Format(TextReward):
    """1 for exactly one non-empty `<reasoning>..</reasoning>` that is followed by an answer; else 0.

    Args:
        opened: the prompt ends with the opening tag: the text goes on behind it.
        tag: the name of the tag.

    Raises:
        UserError: the tag is no word.
    """

    name: ClassVar[str] = "format"

    opened: bool = False
    tag: str = "reasoning"

    def __post_init__(self):
        if not re.fullmatch(r"\w+", self.tag):
            raise UserError(f"reward format: tag must be a word such as think, not {self.tag!r}")

    def read(self, text: str, row: Row) -> Score:
        del row
        opening, closing = f"<{self.tag}>", f"</{self.tag}>"
        text = f"{opening}{text}" if self.opened else text
        if text.count(opening) != 1 or text.count(closing) != 1:
            return Score.ok(0)
        inside, _, after = text.partition(opening)[2].partition(closing)
        # A closing tag before the opening one leaves the second partition without a separator, hence without an answer.
        return Score.ok(not _is_empty(inside) and answer_span(after) is not None)


@dataclass(frozen=True)
class Integer(TextReward):
    """1 if the answer is nothing but an integer, thousands commas and a minus allowed; else 0."""

    name: ClassVar[str] = "integer"

    def read(self, text: str, row: Row) -> Score:
        del row
        span = require_span(text)
        return Score.ok(re.fullmatch(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)", span) is not None)


@dataclass(frozen=True)
class Boxed(TextReward):
    r"""1 if there is a non-empty `\boxed{..}`; else 0."""

    name: ClassVar[str] = "boxed"

    def read(self, text: str, row: Row) -> Score:
        del row
        return Score.ok(any(not _is_empty(text[start:end]) for start, end in reversed(_box_spans(text))))
