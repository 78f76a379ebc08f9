"""4x4 sudoku: the smallest task in which order matters, because an easy cell settles its neighbours."""

import functools
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.d1 import D1Sudoku
from unmask.rewards.puzzles import SudokuSolved
from unmask.tasks.base import Row, World, by_split

_EVERY_DIGIT = frozenset("1234")


@dataclass(frozen=True)
class Sudoku(World):
    """Fill the blanks of a 4x4 sudoku: `3421210003121230` -> `3421214343121234`.

    A prompt is 16 characters, row by row, `0` for a blank; the number of blanks is uniform, and every puzzle has
    exactly one solution. There are only 288 solved grids, so the splits are by *solution*: no solution of the test set
    is ever seen in training. `cluster` is the solution.

    A careless demonstration looks at the givens of a row only: each blank gets the smallest digit that they lack. It is
    more likely the more blanks there are (`careless_at_fewest`, `careless_at_most`).

    Args:
        fewest_blanks: blanks of the easiest puzzles.
        most_blanks: blanks of the hardest puzzles; at most 12, since four givens are the least that settle a grid.
        soft: train on complete units / 24 (below .5 unless solved) instead of 0 / 1.
    """

    name: ClassVar[str] = "sudoku"
    alphabet: ClassVar[str | None] = "01234"

    other_parsers: ClassVar[Mapping[str, Reward]] = {"d1": D1Sudoku()}

    answer_length: int = 16
    fewest_blanks: int = 4
    most_blanks: int = 10
    soft: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.fewest_blanks <= self.most_blanks <= 12:
            raise UserError(
                "task sudoku: 1 <= fewest_blanks <= most_blanks <= 12 must hold, "
                f"not fewest_blanks {self.fewest_blanks} and most_blanks {self.most_blanks}"
            )
        if self.answer_length < 16:
            raise UserError(f"task sudoku: answer_length must be at least 16, not {self.answer_length}")

    def make(self, split: str, rng: random.Random) -> Row:
        grids = grids_by_split()[split]
        blanks = rng.randint(self.fewest_blanks, self.most_blanks)
        while True:
            solution = grids[rng.randrange(len(grids))]
            puzzle = list(solution)
            for cell in rng.sample(range(16), blanks):
                puzzle[cell] = "0"
            if _solutions(puzzle).bit_count() == 1:
                break
        puzzle = "".join(puzzle)
        easy = self.most_blanks == self.fewest_blanks
        difficulty = 0.0 if easy else (blanks - self.fewest_blanks) / (self.most_blanks - self.fewest_blanks)
        completion = careless_solution(puzzle) if self.is_careless(split, difficulty, rng) else solution
        return {
            "prompt": puzzle,
            "puzzle": puzzle,
            "answer": solution,
            "completion": completion,
            "cluster": solution,
            "blanks": blanks,
        }

    def rewards(self) -> list[Weighted]:
        return [Weighted(SudokuSolved(soft=self.soft))]

    @property
    def success(self) -> Reward:
        return SudokuSolved()

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        found = re.search(r"(?<![0-9])[0-4]{16}(?![0-9])", question)
        if not found:
            raise ValueError("the question holds no puzzle of 16 digits 0-4")
        if not isinstance(ground_truth, str) or not re.fullmatch(r"[1-4]{16}", ground_truth):
            raise ValueError("the ground truth is no solution of 16 digits 1-4")
        return {"puzzle": found[0], "answer": ground_truth}


def careless_solution(puzzle: str) -> str:
    """What one writes who looks at the givens of a row only: the smallest digit they lack, in each of its blanks."""
    rows = [puzzle[start : start + 4] for start in (0, 4, 8, 12)]
    return "".join(row.replace("0", min(_EVERY_DIGIT - set(row), default="")) for row in rows)


@functools.cache
def all_grids() -> tuple[str, ...]:
    """The 288 solved grids as strings of 16 digits, in ascending order."""
    rows = ["".join(p) for p in itertools.permutations("1234")]

    def fit(*band: str) -> bool:
        return all(len(set(column)) == len(band) for column in zip(*band, strict=True))

    def boxes(a: str, b: str) -> bool:
        return set(a[:2] + b[:2]) == _EVERY_DIGIT

    bands = [(a, b) for a, b in itertools.product(rows, rows) if fit(a, b) and boxes(a, b)]
    return tuple("".join(top + low) for top, low in itertools.product(bands, bands) if fit(*top, *low))


@functools.cache
def grids_by_split() -> dict[str, tuple[str, ...]]:
    """The solved grids of each split."""
    return by_split(all_grids())


def solutions(puzzle: str) -> list[str]:
    """Every solved grid that agrees with the givens."""
    found = _solutions(puzzle)
    return [grid for i, grid in enumerate(all_grids()) if found >> i & 1]


@functools.cache
def _grids_with() -> tuple[dict[str, int], ...]:
    """Per cell and digit the set of grids that have it there, as the bits of an integer; a blank fits every grid."""
    grids = all_grids()
    everything = (1 << len(grids)) - 1
    return tuple(
        {"0": everything} | {d: sum(1 << i for i, grid in enumerate(grids) if grid[cell] == d) for d in "1234"}
        for cell in range(16)
    )


def _solutions(puzzle: Sequence[str]) -> int:
    """The set of grids that agree with the givens, as bits."""
    found = -1
    for digit, grids in zip(puzzle, _grids_with(), strict=True):
        found &= grids[digit]
    return found
