"""Addition with visible working: a text whose natural order is not the order of its digits."""

import random
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.puzzles import AdditionWorked, columns
from unmask.tasks.base import Row, World, split_of
from unmask.tasks.protocols import Usual


@dataclass(frozen=True)
class Arithmetic(World):
    """Add two numbers of equally many digits, column by column: `478+356=` -> `14,13,08:834`.

    The answer has one two-digit sum per column *from the right*, each with the carry of the one before it (8+6=14,
    7+5+1=13, 4+3+1=08), then `:` and the result. For d digits that is at most 4 d + 1 characters; shorter answers are
    filled up with end tokens. The result can be read off the working, the working cannot be read off the result.

    The splits are by the pair of operands, in either order. A careless demonstration forgets the carries
    (`14,12,07:724`); difficulty is the number of carries that can be forgotten, which is at most most_digits - 1.

    Args:
        fewest_digits: of each operand.
        most_digits: of each operand; at most 5.
    """

    name: ClassVar[str] = "arithmetic"
    alphabet: ClassVar[str | None] = "0123456789+=,:"

    answer_length: int = Usual(17)
    fewest_digits: int = 2
    most_digits: int = 4

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.fewest_digits <= self.most_digits <= 5:
            raise UserError(
                "task arithmetic: 2 <= fewest_digits <= most_digits <= 5 must hold, "
                f"not fewest_digits {self.fewest_digits} and most_digits {self.most_digits}"
            )
        if self.answer_length < 4 * self.most_digits + 1:
            raise UserError(
                f"task arithmetic: {self.most_digits} digits need answer_length {4 * self.most_digits + 1}, "
                f"not {self.answer_length}"
            )

    def make(self, split: str, rng: random.Random) -> Row:
        digits = rng.randint(self.fewest_digits, self.most_digits)
        while True:
            a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
            if split_of(f"arithmetic/{min(a, b)}+{max(a, b)}") == split:
                break
        working = columns(a, b)
        answer = f"{working}:{a + b}"
        # The last column's carry is written down as a digit of the result, so it cannot be forgotten.
        carries = sum(column[0] == "1" for column in working.split(",")[:-1])
        careless = self.is_careless(split, carries / (self.most_digits - 1), rng)
        return {
            "prompt": f"{a}+{b}=",
            "operands": [a, b],
            "answer": answer,
            "completion": careless_addition(a, b) if careless else answer,
            "carries": carries,
        }

    def rewards(self) -> list[Weighted]:
        return [Weighted(AdditionWorked())]

    @property
    def success(self) -> Reward:
        return AdditionWorked()

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        del ground_truth
        found = re.fullmatch(r"([0-9]{1,9})\+([0-9]{1,9})=", question)
        if not found:
            raise ValueError("the question is no sum like 478+356=")
        return {"operands": [int(found[1]), int(found[2])]}


def careless_addition(a: int, b: int) -> str:
    """What one writes who forgets every carry; right where there is none."""
    working = columns(a, b, carry=False)
    *low, top = working.split(",")
    result = int(top + "".join(column[1] for column in reversed(low)))
    return f"{working}:{result}"
