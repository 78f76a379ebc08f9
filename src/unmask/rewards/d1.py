r"""How the evaluation of d1 reads answers (arXiv 2504.12216, `eval/parse_and_get_acc.py`): the parser `d1`.

For comparing with published numbers only, never for training: it reads the raw text, end tokens and what follows them
included, takes the *first* readable box of GSM8K, and falls back to other places where ours say "no answer".
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from unmask.rewards.base import PerItem, Row, Score
from unmask.rewards.text import LONGEST, gold_number

_NUMBER = re.compile(r"-?\d+\.?\d*")


def _floats(text: str, which: int) -> float | None:
    """The text as a number, else the first (0) or last (-1) number in it."""
    try:
        return float(text)
    except ValueError:
        numbers = _NUMBER.findall(text)
        return float(numbers[which]) if numbers else None


@dataclass(frozen=True)
class D1Number(PerItem):
    r"""1 if the number that d1 reads equals the gold as a float; else 0.

    The first `\boxed{..}` (up to the first closing brace, on one line) that holds a number, else the last number of the
    first `<answer>`. A gold text with a negative number is never matched, since d1 cannot read it; a gold that is a
    number already is compared as it is.
    """

    name: ClassVar[str] = "number-d1"

    def judge(self, completion: str, row: Row) -> Score:
        found = None
        for content in map(str.strip, boxes_on_a_line(completion[:LONGEST])):
            if content.strip(".") and (found := _floats(content, 0)) is not None:
                break
        answer = (first_answer(completion[:LONGEST]) or "").strip()
        if found is None and answer:
            found = _floats(answer, -1)
        gold = row["answer"]
        if isinstance(gold, str):
            value = gold_number(gold)
            gold = float(value) if value >= 0 else None
        return Score.ok(found is not None and found == gold, answer=str(found))


def boxes_on_a_line(text: str) -> Iterator[str]:
    r"""What stands between `\boxed{` and the first closing brace, where both are on one line."""
    start = text.find("\\boxed{")
    while start >= 0 and (end := text.find("}", start)) >= 0:
        content = text[start + len("\\boxed{") : end]
        if "\n" not in content:
            yield content
        start = text.find("\\boxed{", end if "\n" not in content else start + 1)


def last_box(text: str) -> str:
    r"""What d1 takes from a text: the content of its last `\boxed{..}`; a text without a box is taken whole.

    Of `\fbox{..}` the macro is kept, and `\boxed ` with a blank runs to the next `$`.

    Raises:
        ValueError: the last box is not closed.
    """
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    start = text.rfind("\\boxed")
    if start < 0:
        start = text.rfind("\\fbox")
        if start < 0:
            return text
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if text[at] == "}" and depth == 0:
            box = text[start : at + 1]
            return box[len("\\boxed{") : -1] if box.startswith("\\boxed{") else box
    raise ValueError("the last box is not closed")


@dataclass(frozen=True)
class D1Countdown(PerItem):
    """1 if the expression that d1 reads uses the row's `numbers` once each and is within 1e-5 of `target`; else 0.

    The last box, or where it is not closed the first `<answer>`, or else the whole text. Python's arithmetic without
    `eval`; towers of powers are refused, which is the only difference.
    """

    name: ClassVar[str] = "countdown-d1"

    def judge(self, completion: str, row: Row) -> Score:
        text = completion[:LONGEST]
        try:
            expression = last_box(text)
        except ValueError:
            answer = first_answer(text)
            expression = text if answer is None else answer.strip()
        for macro, sign in (("\\div", "/"), ("\\times", "*"), ("\\cdot", "*")):
            expression = expression.replace(macro, sign)
        expression = before_equals(expression)
        digits = re.findall(r"\d+", expression)
        if any(len(one) > 100 for one in digits) or sorted(map(int, digits)) != sorted(row["numbers"]):
            return Score.ok(0, answer=expression[:128], reason="other numbers")
        value = python_value(expression)
        solved = value is not None and abs(value - row["target"]) < 1e-5
        return Score.ok(solved, answer=expression[:128], value=str(value))


@dataclass(frozen=True)
class D1Math(PerItem):
    """1 if d1's reading of the answer and the row's `answer` are one text by its string rule; else 0.

    The last box, or the whole text if there is none; where the box is empty or not closed, the first `<answer>`.
    """

    name: ClassVar[str] = "math-d1"

    def judge(self, completion: str, row: Row) -> Score:
        text = completion[:LONGEST]
        try:
            found = last_box(text)
        except ValueError:
            found = None
        if not found and (answer := first_answer(text)) is not None:
            found = answer.strip()
        same = found is not None and same_text(found, str(row["answer"]))
        return Score.ok(same, answer=None if found is None else found[:128])


def same_text(answer: str, gold: str) -> bool:
    """Whether two LaTeX texts have one normal form; where either has none, whether they are equal as they are."""
    try:
        return normal_form(answer) == normal_form(gold)
    except ValueError:
        return answer == gold


_REWRITTEN = (
    *(("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), ("\\$", "")),
)


def normal_form(text: str) -> str:
    r"""The string rule of MATH (Hendrycks et al. 2021, arXiv 2103.03874) as d1 applies it, step by step in its order.

    Raises:
        ValueError: it breaks off: two units, a `\frac` or `\sqrt` without an argument, a slash between no integers.
    """
    for part, spelling in _REWRITTEN:
        text = text.replace(part, spelling)
    text, *units = text.split("\\text{ ")  # behind a blank there are units only
    if len(units) > 1:
        raise ValueError("two units")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return ""
    text = "0" + text if text[0] == "." else text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _argument_of_roots(text).replace(" ", "")
    text = _arguments_of_fractions(text)
    return _fraction_of_slash("\\frac{1}{2}" if text == "0.5" else text)


def _argument_of_roots(text: str) -> str:
    start, *pieces = text.split("\\sqrt")
    if "" in pieces:
        raise ValueError("a root of nothing")
    return start + "".join("\\sqrt" + (p if p[0] == "{" else "{" + p[0] + "}" + p[1:]) for p in pieces)


def _arguments_of_fractions(text: str) -> str:
    start, *pieces = text.split("\\frac")
    for piece in pieces:
        if not piece:
            raise ValueError("a fraction of nothing")
        if piece[0] != "{" and len(piece) < 2:
            return text
        if piece[0] != "{":
            second = piece[1] if piece[1] == "{" else "{" + piece[1] + "}"
            piece = "{" + piece[0] + "}" + second + piece[2:]
        start += "\\frac" + piece
    return start


def _fraction_of_slash(text: str) -> str:
    sides = text.split("/")
    if len(sides) != 2:
        return text
    top, bottom = int(sides[0]), int(sides[1])  # no integers: the rule breaks off
    return f"\\frac{{{top}}}{{{bottom}}}" if text == f"{top}/{bottom}" else text


def first_answer(text: str) -> str | None:
    """The content of the first `<answer>` up to the next closing tag; None without both."""
    start = text.find("<answer>")
    end = text.find("</answer>", start)
    return text[start + len("<answer>") : end] if 0 <= start < end else None


def before_equals(text: str) -> str:
    """The first run of plain arithmetic that stands before `=` and a number; a text without one is taken whole."""
    for run in re.finditer(r"[0-9+\-*/() ]+", text):
        if re.match(r"=[0-9. ]", text[run.end() : run.end() + 2]):
            return run[0].strip()
    return text


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def python_value(expression: str) -> Any:
    """The value that Python gives an expression of digits, `+ - * / ( ) .` and blanks; None where it gives none."""
    if not re.match(r"^[\d+\-*/().\s]+$", expression) or len(expression) > 1000:
        return None

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant):
            if not isinstance(node.value, int | float):  # dots alone are one
                raise SyntaxError("no number")
            return node.value
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            base, exponent = value(node.left), value(node.right)
            if abs(exponent) * math.log2(abs(base) + 2) > 1024:
                raise OverflowError("a tower")
            return base**exponent
        if isinstance(node, ast.BinOp):
            return _BINARY[type(node.op)](value(node.left), value(node.right))
        raise SyntaxError("a call or a tuple")

    try:
        return value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, ValueError, TypeError, RecursionError, MemoryError):
        return None


_DIGITS = re.compile(r"[\d\s]*")
_END = re.compile(r"<\|eot_id\|>|<\|endoftext\|>|</answer>")
_ELSEWHERE = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"</answer>\s*(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|$)",
        r"(\d{16})\s*</answer>",
        r"\b(\d{16})\b",
    )
)


def grids(text: str) -> Iterator[str]:
    """The places where d1 looks for a grid, in its order: those that are there."""
    start = text.find("<answer>")
    if start >= 0:
        yield fenced_digits(text, start)
        end = _END.search(text, start + len("<answer>"))
        yield text[start + len("<answer>") : end.start()] if end else ""
    yield from (match[1] for pattern in _ELSEWHERE if (match := pattern.search(text)))


def fenced_digits(text: str, start: int) -> str:
    """The first fence behind `start` with nothing but digits and white space in it; empty if there is none."""
    at = text.find("```", start)
    while at >= 0:
        digits = _DIGITS.match(text, at + 3)
        if digits and digits[0] and text.startswith("```", digits.end()):
            return digits[0]
        at = text.find("```", at + 1)
    return ""


@dataclass(frozen=True)
class D1Sudoku(PerItem):
    """Share of the row's blank cells that agree with its `answer`, as d1 reads the grid.

    The first of five patterns that finds a text; white space removed, padded with `0` or cut to 16 characters. d1
    reports the share over all cells of all rows: `details.right` of `details.parts`.
    """

    name: ClassVar[str] = "sudoku-d1"

    def judge(self, completion: str, row: Row) -> Score:
        grid = next(filter(str.strip, grids(completion[:LONGEST])), "")
        grid = re.sub(r"\s", "", grid)
        padded = (grid + "0" * 16)[:16]
        blanks = [cell for cell in range(16) if row["puzzle"][cell] == "0"]
        right = sum(padded[cell] == row["answer"][cell] for cell in blanks) if grid else 0
        return Score.ok(right / max(1, len(blanks)), answer=grid[:64], right=right, parts=len(blanks))
