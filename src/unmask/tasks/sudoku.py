"""4x4 sudoku: the smallest task in which order matters, because an easy cell settles its neighbours."""

import functools
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.messages import short
from unmask.rewards.base import Reward
from unmask.rewards.d1 import D1Sudoku
from unmask.rewards.puzzles import SudokuSolved
from unmask.tasks.base import Row, by_split
from unmask.tasks.protocols import Usual
from unmask.tasks.puzzles import Puzzle

INSTRUCTIONS = """You are an expert in logic puzzles. Solve the 4x4 sudoku below.
It is written as 16 digits, row by row, where 0 is a blank. Fill each blank with a digit from 1 to 4, so that every row,
every column and each of the four 2x2 boxes holds all of 1, 2, 3 and 4. The other digits stay as they are.
Write your reply in this layout, with nothing but the 16 digits of the solved grid, row by row, as the answer:
<reasoning>
how the rows are completed
</reasoning>
<answer>
the 16 digits
</answer>"""

_EVERY_DIGIT = frozenset("1234")


@dataclass(frozen=True)
class Sudoku(Puzzle):
    """Fill the blanks of a 4x4 sudoku: `3421210003121230` -> `3421214343121234`.

    A prompt is 16 characters, row by row, `0` for a blank; in a chat the answer is the 16 digits, without a box. Of
    generated puzzles the number of blanks is uniform, and each has exactly one solution. There are only 288 solved
    grids, so the splits are by *solution*: no solution of the test set is ever seen in training. `cluster` is the
    solution.

    Rows of `data` have `Puzzle` and `Solution`, or `puzzle` and `solution`. Puzzles may have several solutions, of
    which any counts; the listed one is `answer` and `cluster`. Whole numbers, as some readers of tables make them, are
    filled up with zeros in front.

    A careless demonstration looks at the givens of a row only: each blank gets the smallest digit that they lack. It is
    more likely the more blanks there are (`careless_at_fewest`, `careless_at_most`).

    Args:
        fewest_blanks: blanks of the easiest generated puzzles.
        most_blanks: blanks of the hardest ones; at most 12, since four givens are the least that settle a grid.
        soft: train on complete units / 24 (below .5 unless solved) instead of 0 / 1.
    """

    name: ClassVar[str] = "sudoku"
    alphabet: ClassVar[str | None] = "01234"

    other_parsers: ClassVar[Mapping[str, Reward]] = {"d1": D1Sudoku()}
    instructions: ClassVar[str] = INSTRUCTIONS

    answer_length: int = Usual(16)
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
        item = {
            "prompt": puzzle,
            "puzzle": puzzle,
            "answer": solution,
            "completion": completion,
            "cluster": solution,
            "blanks": blanks,
        }
        return self.laid_out(item)

    def checked(self, place: str, row: Mapping[str, Any]) -> Row:
        puzzle = _digits(place, row, "puzzle", "0-4")
        if not _solutions(puzzle):
            raise UserError(f"{place}: {puzzle} is a sudoku without a solution; correct or remove the row")
        solution = _digits(place, row, "solution", "1-4")
        if not _solutions(solution):
            raise UserError(f"{place}: {solution} is no solved sudoku; correct or remove the row")
        if any(given not in ("0", digit) for given, digit in zip(puzzle, solution, strict=True)):
            raise UserError(f"{place}: solution {solution} contradicts puzzle {puzzle}; correct or remove the row")
        return {"puzzle": puzzle, "answer": solution, "cluster": solution, "blanks": puzzle.count("0")}

    def bare_item(self, row: Row) -> Row:
        return {**row, "prompt": row["puzzle"], "completion": row["answer"]}

    def question(self, row: Row) -> str:
        return f"Puzzle: {row['puzzle']}"

    def worked(self, row: Row) -> tuple[str, str]:
        grids = row["puzzle"], row["completion"]
        rows = [tuple(grid[start : start + 4] for grid in grids) for start in (0, 4, 8, 12)]
        lines = [f"Row {n}: {given} becomes {full}" for n, (given, full) in enumerate(rows, start=1)]
        return "\n".join(lines), row["completion"]

    def judge(self, training: bool) -> Reward:
        return SudokuSolved(soft=self.soft and training)

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        found = re.search(r"(?<![0-9])[0-4]{16}(?![0-9])", question)
        if not found:
            raise ValueError("the question holds no puzzle of 16 digits 0-4")
        if not isinstance(ground_truth, str) or not re.fullmatch(r"[1-4]{16}", ground_truth):
            raise ValueError("the ground truth is no solution of 16 digits 1-4")
        return {"puzzle": found[0], "answer": ground_truth}


def _digits(place: str, row: Mapping[str, Any], name: str, which: str) -> str:
    """The 16 digits of a field, whose name may be capitalised."""
    field = name if name in row else name.capitalize()
    if field not in row:
        raise UserError(f"{place}: field {field!r} is missing; the row has {short(', '.join(map(str, row))) or 'none'}")
    value = row[field]
    if type(value) is int and 0 <= value < 10**16:
        value = f"{value:016d}"
    if not isinstance(value, str) or not re.fullmatch(rf"\s*[{which}]{{16}}\s*", value):
        raise UserError(
            f"{place}: field {field!r} must be 16 digits {which}, row by row, not {short(value)!r}; "
            "correct or remove the row (tables that hold numbers lose zeros in front: write them as texts)"
        )
    return value.strip()


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
