"""Rewards of tasks whose answers are checked by rules: every valid answer counts, not only a listed one."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from unmask.rewards.base import Row, Score
from unmask.rewards.text import TextReward, Unreadable, answer_span, require_span

_UNITS = tuple(
    unit
    for i in range(4)
    for corner in [8 * (i // 2) + 2 * (i % 2)]
    for unit in (
        tuple(range(4 * i, 4 * i + 4)),
        tuple(range(i, 16, 4)),
        (corner, corner + 1, corner + 4, corner + 5),
    )
)


@dataclass(frozen=True)
class SudokuSolved(TextReward):
    """1 if the answer keeps the givens of the row's `puzzle` and completes all rows, columns and boxes; else 0.

    The answer is the span, or the whole text if that is only digits and white space; white space and `| , ; [ ] + -`
    are read over. What is not 16 digits 1-4 is invalid.

    Args:
        soft: instead of 0, complete units / 24 when the givens are kept: below .5 unless solved.
    """

    name: ClassVar[str] = "sudoku"

    soft: bool = False

    def read(self, text: str, row: Row) -> Score:
        span = answer_span(text)
        if span is None and re.fullmatch(r"[0-9\s]+", text, re.ASCII):
            span = text
        if span is None:
            raise Unreadable("no answer")
        grid = re.sub(r"[\s|,;\[\]+-]", "", span)
        if not re.fullmatch(r"[1-4]{16}", grid):
            raise Unreadable("not 16 digits 1-4")
        if any(given not in ("0", digit) for given, digit in zip(row["puzzle"], grid, strict=True)):
            return Score.ok(0, answer=grid, reason="a given was changed")
        complete = sum(len({grid[cell] for cell in unit}) == 4 for unit in _UNITS)
        if complete == 12:
            return Score.ok(1, answer=grid)
        return Score.ok(complete / 24 if self.soft else 0, answer=grid)


_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_TIMES = re.compile(r"\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|[\u00d7\u00b7]")
_DIVIDED = re.compile(r"\\div(?![A-Za-z])|\u00f7")
_DROPPED = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[()\[\]]|\$")
_PIECE = re.compile(r"[0-9]+|[-+*/()]")
_BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class CountdownSolved(TextReward):
    """1 if the answer reaches the row's `target` with each of its `numbers` exactly once; else 0.

    Args:
        partial: for the right numbers with the wrong value.
        bare: without an answer span the whole visible text is the answer, for tasks whose answers are bare expressions.
    """

    name: ClassVar[str] = "countdown"

    partial: float = 0.1
    bare: bool = False

    def read(self, text: str, row: Row) -> Score:
        expression = normalise_expression(text if self.bare and answer_span(text) is None else require_span(text))
        value, used = evaluate_expression(expression)
        if sorted(used) != sorted(int(number) for number in row["numbers"]):
            return Score.ok(0, answer=expression, reason="other numbers")
        solved = value == int(row["target"])
        return Score.ok(1 if solved else self.partial, answer=expression, value=str(value))


def normalise_expression(span: str) -> str:
    """A span's expression in plain characters: LaTeX operators and fractions rewritten, cut before the first `=`.

    Raises:
        Unreadable: longer than 128 characters.
    """
    text = " ".join(span.split())
    if len(text) > 1024:  # before the rewriting of nested fractions, whose cost grows with depth times length
        raise Unreadable("the expression is too long")
    text = _DIVIDED.sub("/", _TIMES.sub("*", text.replace("\u2212", "-")))
    text = _DROPPED.sub(" ", text)
    while (rewritten := _FRACTION.sub(r"((\1)/(\2))", text)) != text:
        text = rewritten
    text = " ".join(text.partition("=")[0].split()).removesuffix(".").strip()
    if len(text) > 128:
        raise Unreadable("the expression is longer than 128 characters")
    return text


def evaluate_expression(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression, and the numbers in it.

    Only non-negative decimal integers below 10^6 without leading zeros, binary `+ - * /`, parentheses and blanks. There
    is no `eval` and no recursion: two stacks, so time and memory are bounded by the length of the text.

    Raises:
        Unreadable: anything else, or a division by zero.
    """
    values: list[Fraction] = []
    pending: list[str] = []  # operators and opening parentheses that wait for their right side
    used: list[int] = []

    def apply() -> None:
        operator, right, left = pending.pop(), values.pop(), values.pop()
        if operator == "/" and right == 0:
            raise Unreadable("division by zero")
        values.append(
            left + right
            if operator == "+"
            else left - right
            if operator == "-"
            else left * right
            if operator == "*"
            else left / right
        )

    operand_next = True
    at = 0
    while at < len(expression):
        if expression[at] == " ":
            at += 1
            continue
        match = _PIECE.match(expression, at)
        if match is None:
            raise Unreadable("not an expression")
        piece, at = match[0], match.end()
        # An operand, or what opens one, may only stand where one is due: this excludes signs, `**`, `2(3)`, `1 2`.
        if operand_next != (piece not in _BINDS and piece != ")"):
            raise Unreadable("not an expression")
        if piece == "(":
            pending.append(piece)
        elif piece == ")":
            while pending and pending[-1] != "(":
                apply()
            if not pending:
                raise Unreadable("unbalanced parentheses")
            pending.pop()
        elif piece in _BINDS:
            while pending and pending[-1] != "(" and _BINDS[pending[-1]] >= _BINDS[piece]:
                apply()
            pending.append(piece)
            operand_next = True
        else:
            if len(piece) > 6 or (piece[0] == "0" and piece != "0"):
                raise Unreadable("a number that is too long or has a leading zero")
            used.append(int(piece))
            values.append(Fraction(int(piece)))
            operand_next = False
    if operand_next:
        raise Unreadable("not an expression")
    while pending:
        if pending[-1] == "(":
            raise Unreadable("unbalanced parentheses")
        apply()
    return values[0], used


@dataclass(frozen=True)
class ExactAnswer(TextReward):
    """1 if the visible text is the row's `answer`, outer white space aside; else 0. Nothing at all is invalid."""

    name: ClassVar[str] = "exact"

    def read(self, text: str, row: Row) -> Score:
        answer = text.strip()
        if not answer:
            raise Unreadable("no answer")
        return Score.ok(answer == str(row["answer"]).strip())


_COLUMNS = re.compile(r"([0-9]{2}(?:,[0-9]{2})*):(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class AdditionWorked(TextReward):
    """1 if the answer shows its working and the sum is right; else 0. Only the result's rightness is judged.

    The form is `14,13,08:834`: one two-digit column sum per digit of the longer of the row's `operands`, then `:` and
    the result. Other forms are invalid. Whether the columns are right is said in `details.working`.
    """

    name: ClassVar[str] = "addition"

    def read(self, text: str, row: Row) -> Score:
        a, b = (int(operand) for operand in row["operands"])
        match = _COLUMNS.fullmatch(text.strip())
        if match is None or match[1].count(",") + 1 != len(str(max(a, b))):
            raise Unreadable("not column sums, a colon and the result")
        # Compared as text: int() refuses very long strings, and a canonical numeral is unique.
        return Score.ok(match[2] == str(a + b), answer=match[2][:64], working=match[1] == columns(a, b))


def columns(a: int, b: int, carry: bool = True) -> str:
    """The column sums of a + b from the right, two digits each; `carry` false: no column takes in a carry."""
    written, carried = [], 0
    for _ in str(max(a, b)):
        column = a % 10 + b % 10 + carried
        written.append(f"{column:02d}")
        carried = column // 10 if carry else 0
        a, b = a // 10, b // 10
    return ",".join(written)
