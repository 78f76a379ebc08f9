"""Countdown with three numbers: the smallest task with many right answers per question."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.d1 import D1Countdown
from unmask.rewards.puzzles import CountdownSolved, evaluate_expression
from unmask.tasks.base import Row, World, split_of

_OPERATORS = "+-*"


@dataclass(frozen=True)
class Countdown(World):
    """Reach the target with each number exactly once: `4,7,7=35:` -> `(7*4)+7`.

    Targets are whole numbers from 1 to 99 that `+ - *` reach; answers may use `/` as well. The splits are by the
    multiset of numbers, which is also the `cluster`.

    A careless demonstration uses the right numbers but misses the target: the parentheses are forgotten or, where that
    changes nothing, the last operator is mistaken. Difficulty counts the operators other than `+` (0, 1 or 2).

    Args:
        largest: of the numbers, which start at 1; at most 99.
        partial: training reward for the right numbers with the wrong value.
    """

    name: ClassVar[str] = "countdown"
    alphabet: ClassVar[str | None] = "0123456789+-*/()=,:"

    other_parsers: ClassVar[Mapping[str, Reward]] = {"d1": D1Countdown()}

    answer_length: int = 10
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
        return {
            "prompt": f"{','.join(map(str, numbers))}={target}:",
            "numbers": numbers,
            "target": int(target),
            "answer": expression,
            "completion": careless_expression(expression) if careless else expression,
            "cluster": multiset,
        }

    def rewards(self) -> list[Weighted]:
        return [Weighted(CountdownSolved(partial=self.partial, bare=True))]

    @property
    def success(self) -> Reward:
        return CountdownSolved(bare=True)

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        """Ours asks `4,7,7=35:`; d1 asks `Numbers: [4, 7, 7]`, `Target: 35` and stores both as the ground truth."""
        match ground_truth:
            case [[*numbers], int(target)] if all(type(number) is int for number in numbers):
                return {"numbers": numbers, "target": target}
        ours = re.fullmatch(r"([0-9,]+)=([0-9]+):", question)
        theirs = re.search(r"Numbers: \[([0-9, ]+)\]\s*Target: ([0-9]+)", question)
        if not (found := ours or theirs):
            raise ValueError("the question names no numbers and target, and the ground truth is not [numbers, target]")
        return {"numbers": [int(number) for number in found[1].split(",")], "target": int(found[2])}


def careless_expression(expression: str) -> str:
    """The same numbers with another value: without the parentheses, else with another last operator."""
    value, _ = evaluate_expression(expression)
    slips = [expression.replace("(", "").replace(")", "")]
    last = max(i for i, character in enumerate(expression) if character in _OPERATORS)
    slips += [expression[:last] + operator + expression[last + 1 :] for operator in _OPERATORS]
    return next(slip for slip in slips if evaluate_expression(slip)[0] != value)
