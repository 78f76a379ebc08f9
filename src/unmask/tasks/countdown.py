"""Countdown: reach a target with given numbers, the smallest task with many right answers per question."""

import ast
import itertools
import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.messages import short
from unmask.rewards.base import Reward
from unmask.rewards.d1 import D1Countdown
from unmask.rewards.puzzles import CountdownSolved, evaluate_expression
from unmask.tasks.base import Row, split_of
from unmask.tasks.protocols import Usual
from unmask.tasks.puzzles import Puzzle

INSTRUCTIONS = r"""You are quick at arithmetic. From the numbers below, build an expression whose value is the target.
Each number is used exactly once; allowed are +, -, *, / and parentheses.
Write your reply in this layout, with the expression alone, without an equals sign, inside \boxed{}:
<reasoning>
the steps that lead to the target
</reasoning>
<answer>
\boxed{the expression}
</answer>"""

MOST_NUMBERS = 12
"""Of a row in a file: with so many of six digits, an answer is still shorter than what the reward reads."""
MOST_SOLVED = 4
"""Numbers for which a solution is searched: the effort grows about a hundredfold with each."""
_OPERATORS = "+-*"
_COLUMNS = (("input", "output"), ("nums", "target"))


@dataclass(frozen=True)
class Countdown(Puzzle):
    r"""Reach the target with each number exactly once: `4,7,7=35:` -> `(7*4)+7`.

    Generated rows have three numbers, and targets from 1 to 99 that `+ - *` reach; answers may use `/` as well. The
    splits are by the multiset of numbers, which is also the `cluster`. In a chat the answer is a `\boxed{}` expression.

    Rows of `data` have `input` ("30,100,93") and `output` ("23"), or `nums` and `target`: 2 to 12 numbers from 0 to
    999999. Rows with up to four numbers get a demonstration if whole numbers lead to the target in all steps.

    A careless demonstration uses the right numbers but misses the target: the parentheses are forgotten or, where that
    changes nothing, the last operator is mistaken. Difficulty counts the operators other than `+` (0, 1 or 2).

    Args:
        largest: of the generated numbers, which start at 1; at most 99.
        partial: training reward for the right numbers with the wrong value.
    """

    name: ClassVar[str] = "countdown"
    alphabet: ClassVar[str | None] = "0123456789+-*/()=,:"

    other_parsers: ClassVar[Mapping[str, Reward]] = {"d1": D1Countdown()}
    instructions: ClassVar[str] = INSTRUCTIONS

    answer_length: int = Usual(10)
    largest: int = 20
    partial: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 3 <= self.largest <= 99:
            raise UserError(f"task countdown: largest must be in [3, 99], not {self.largest}")
        if self.answer_length < 10:
            raise UserError(f"task countdown: answer_length must be at least 10, not {self.answer_length}")

    def make(self, split: str, rng: random.Random) -> Row:
        while True:
            numbers = [rng.randint(1, self.largest) for _ in range(3)]
            multiset = ",".join(map(str, sorted(numbers)))
            if split_of(f"countdown/{multiset}") != split:
                continue
            a, b, c = rng.sample(numbers, 3)
            first, second = rng.choice(_OPERATORS), rng.choice(_OPERATORS)
            expression = f"({a}{first}{b}){second}{c}" if rng.random() < 0.5 else f"{c}{second}({a}{first}{b})"
            target, _ = evaluate_expression(expression)
            if 0 < target < 100:
                break
        difficulty = ((first != "+") + (second != "+")) / 2
        careless = self.is_careless(split, difficulty, rng)
        item = {
            "prompt": _bare_prompt(numbers, int(target)),
            "numbers": numbers,
            "target": int(target),
            "answer": expression,
            "completion": careless_expression(expression) if careless else expression,
            "cluster": multiset,
        }
        return self.laid_out(item)

    def checked(self, place: str, row: Mapping[str, Any]) -> Row:
        names = next((names for names in _COLUMNS if names[0] in row), None)
        if names is None:
            raise UserError(
                f"{place}: fields 'input' and 'output', or 'nums' and 'target', are needed; "
                f"the row has {short(', '.join(map(str, row))) or 'none'}"
            )
        numbers, target = _numbers(row[names[0]]), _whole(row.get(names[1]))
        if numbers is None:
            raise UserError(
                f"{place}: field {names[0]!r} must be 2 to {MOST_NUMBERS} whole numbers from 0 to 999999, a list or a "
                f"text with commas, not {short(row[names[0]])!r}; correct or remove the row"
            )
        if target is None:
            raise UserError(
                f"{place}: field {names[1]!r} must be a whole number of at most 9 digits, "
                f"not {short(row.get(names[1]))!r}; correct or remove the row"
            )
        shortest = sum(len(str(number)) + 1 for number in numbers) - 1  # the numbers, and a sign between each two
        if self.bare and shortest > self.answer_length:
            raise UserError(
                f"{place}: the shortest possible answer has {shortest} characters, but answer_length is "
                f"{self.answer_length}: ask a language model in a chat (--protocol chat, in a run --task.protocol "
                "chat), or raise answer_length"
            )
        return {"numbers": numbers, "target": target, "cluster": ",".join(map(str, sorted(numbers)))}

    def bare_item(self, row: Row) -> Row:
        solution = solve(row["numbers"], row["target"])
        known = {} if solution is None else {"answer": solution, "completion": solution}
        return {**row, "prompt": _bare_prompt(row["numbers"], row["target"]), **known}

    def question(self, row: Row) -> str:
        return f"Numbers: {', '.join(map(str, row['numbers']))}\nTarget: {row['target']}"

    def worked(self, row: Row) -> tuple[str, str]:
        expression = row["completion"]
        return "\n".join(steps(expression)), f"\\boxed{{{expression}}}"

    def judge(self, training: bool) -> Reward:
        reward = CountdownSolved(bare=self.bare)
        return replace(reward, partial=self.partial) if training else reward

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        """Ours asks `4,7,7=35:`, or in a chat `Numbers: 4, 7, 7`, `Target: 35`; d1 writes brackets around the numbers,
        and stores both as the ground truth."""
        match ground_truth:
            case [[_, *_] as numbers, int(target)] if all(type(number) is int for number in numbers):
                return {"numbers": numbers, "target": target}
        bare = re.fullmatch(r"([0-9,]+)=(-?[0-9]+):", question)
        chat = re.search(r"Numbers: \[?([0-9, ]+)\]?\s*Target: (-?[0-9]+)", question)
        if not (found := bare or chat):
            raise ValueError("the question names no numbers and target, and the ground truth is not [numbers, target]")
        return {"numbers": [int(number) for number in found[1].split(",")], "target": int(found[2])}


def _bare_prompt(numbers: Sequence[int], target: int) -> str:
    return f"{','.join(map(str, numbers))}={target}:"


def _numbers(value: Any) -> list[int] | None:
    """Numbers that an answer can be written with, from a list or a text with commas, in brackets or not."""
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").split(",")
    if not isinstance(value, list) or not 2 <= len(value) <= MOST_NUMBERS:
        return None
    numbers = [number for one in value if (number := _whole(one)) is not None and 0 <= number < 10**6]
    return numbers if len(numbers) == len(value) else None


def _whole(value: Any) -> int | None:
    """A whole number, or a text of one; small enough for d1's parser, which compares to 1e-5 in floating point."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,9}\s*", value, re.ASCII):
        return int(value)
    return value if type(value) is int and abs(value) < 10**9 else None


def solve(numbers: Sequence[int], target: int) -> str | None:
    """An expression with each number once whose value is the target, and whose steps are whole numbers from 0.

    None if there is none, or if there are more than `MOST_SOLVED` numbers.
    """
    if len(numbers) > MOST_SOLVED:
        return None
    return _solve([(number, str(number)) for number in numbers], target)


def _solve(terms: list[tuple[int, str]], target: int) -> str | None:
    if len(terms) == 1:
        value, text = terms[0]
        return text if value == target else None
    for pair in itertools.combinations(range(len(terms)), 2):
        (b, less), (a, more) = sorted((terms[i] for i in pair), key=lambda term: term[0])
        rest = [term for i, term in enumerate(terms) if i not in pair]
        made = [(a + b, f"{more}+{less}"), (a - b, f"{more}-{less}"), (a * b, f"{more}*{less}")]
        if b and a % b == 0:
            made.append((a // b, f"{more}/{less}"))
        for value, text in made:
            found = _solve([(value, f"({text})" if rest else text), *rest], target)
            if found is not None:
                return found
    return None


_SIGNS: dict[type[ast.operator], tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.floordiv),
}


def steps(expression: str) -> list[str]:
    """The operations of an expression with whole values, in their order: `(7*4)+7` -> `7*4 = 28`, `28+7 = 35`."""
    lines: list[str] = []

    def value(node: ast.AST) -> int:
        if not isinstance(node, ast.BinOp):
            return ast.literal_eval(node)
        left, right = value(node.left), value(node.right)
        sign, apply = _SIGNS[type(node.op)]
        result = apply(left, right)
        lines.append(f"{_operand(left)}{sign}{_operand(right)} = {result}")
        return result

    value(ast.parse(expression, mode="eval").body)
    return lines


def _operand(number: int) -> str:
    return f"({number})" if number < 0 else str(number)


def careless_expression(expression: str) -> str:
    """The same numbers with another value: without the parentheses, else with another last operator."""
    value, _ = evaluate_expression(expression)
    slips = [expression.replace("(", "").replace(")", "")]
    last = max(i for i, character in enumerate(expression) if character in _OPERATORS)
    slips += [expression[:last] + sign + expression[last + 1 :] for sign in _OPERATORS]
    return next(slip for slip in slips if evaluate_expression(slip)[0] != value)
