"""Tiny program synthesis: find the expression behind four examples; hidden points judge it, in the sandbox."""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.code import Expression
from unmask.rewards.sandbox import CodeExecutor, LocalSandbox
from unmask.tasks.base import Row, World, by_split
from unmask.tasks.protocols import Usual

Point = tuple[int, int]
HIDDEN = 8
_POINTS: tuple[Point, ...] = tuple((x, y) for x in range(10) for y in range(10))
_CORNER: tuple[Point, ...] = ((0, 0), (1, 0), (0, 1))  # every core is 0 at the first, and -1, 0 or 1 at the others
_OTHERS = tuple(point for point in _POINTS if point not in _CORNER)


@dataclass(frozen=True)
class Program:
    """The function `core * scale + shift` of two digits; its text uses as few operations as that takes."""

    core: str
    scale: int
    shift: int

    @property
    def text(self) -> str:
        text = self.core
        if self.scale > 1:
            text = f"({text})" if text[1:2] in ("+", "-") else text
            text += f"*{self.scale}"
        return text + (f"+{self.shift}" if self.shift else "")

    @property
    def operations(self) -> int:
        """1, 2 or 3; 0 for the bare `x` and `y`, which are no task."""
        return (len(self.core) > 1) + (self.scale > 1) + (self.shift != 0)

    def __call__(self, point: Point) -> int:
        return _CORES[self.core](*point) * self.scale + self.shift


_CORES = {
    "x": lambda x, _: x,
    "y": lambda _, y: y,
    "x+y": lambda x, y: x + y,
    "x-y": lambda x, y: x - y,
    "y-x": lambda x, y: y - x,
    "x*y": lambda x, y: x * y,
    "max(x,y)": max,
    "min(x,y)": min,
}


@dataclass(frozen=True)
class Programs(World):
    """Write a Python expression of `x` and `y` that explains examples: `0,0>1;1,0>3;0,1>3;6,6>25:` -> `(x+y)*2+1`.

    Behind each item is one of the functions `core * scale + shift` (`programs`), with x and y from 0 to 9. The first
    three examples are always those at (0, 0), (1, 0) and (0, 1), which tell shift and scale; all examples together rule
    out all other functions. The answer may be any Python expression. It is run in the sandbox on the examples and on
    hidden points, and is right if it is right on all; the two outcomes in `details.tests` tell a program that fits the
    examples only. Splits are by function, which is also the `cluster`, so those of the test set are never seen in
    training.

    A careless demonstration explains the first example alone, as `x` plus a number (`x+1`). Harder items, which take
    more operations, are more often answered so (`careless_at_fewest`, `careless_at_most`).

    Args:
        shown: examples in a prompt, 4 to 8.
        sandbox: where programs run.
    """

    name: ClassVar[str] = "programs"
    alphabet: ClassVar[str | None] = "0123456789xymain+-*(),>;:"

    answer_length: int = Usual(12)
    shown: int = 4
    sandbox: CodeExecutor = field(default_factory=LocalSandbox)

    def __post_init__(self):
        super().__post_init__()
        if not 4 <= self.shown <= 8:
            raise UserError(f"task programs: shown must be from 4 to 8, not {self.shown}")
        if self.answer_length < 12:
            raise UserError(f"task programs: answer_length must be at least 12, not {self.answer_length}")

    def make(self, split: str, rng: random.Random) -> Row:
        names = programs_by_split()[split]
        while True:
            program = programs()[names[rng.randrange(len(names))]]
            others = rng.sample(_OTHERS, self.shown - len(_CORNER) + HIDDEN)
            shown, hidden = (*_CORNER, *others[:-HIDDEN]), others[-HIDDEN:]
            fit = -1
            for point in shown:
                fit &= _programs_with()[point, program(point)]
            if fit.bit_count() == 1:
                break
        examples = ";".join(f"{x},{y}>{program((x, y))}" for x, y in shown)
        careless = self.is_careless(split, (program.operations - 1) / 2, rng)
        return {
            "prompt": examples + ":",
            "answer": program.text,
            "completion": careless_program(shown[0], program(shown[0])) if careless else program.text,
            "tests": [_test(program, shown), _test(program, hidden)],
            "cluster": program.text,
            "operations": program.operations,
        }

    def rewards(self) -> list[Weighted]:
        return [Weighted(self.success)]

    @property
    def success(self) -> Reward:
        return Expression(all_or_nothing=True, sandbox=self.sandbox)


def careless_program(point: Point, value: int) -> str:
    """What one writes who looks at one example only: `x` plus what is missing; right where no more is needed."""
    return f"x{value - point[0]:+d}" if value != point[0] else "x"


@functools.cache
def programs() -> dict[str, Program]:
    """All functions by their texts, none twice: 8 cores, scales 1 to 9, shifts 0 to 9; not the bare `x` and `y`."""
    distinct: dict[tuple[int, ...], Program] = {}
    every = (Program(core, scale, shift) for core in _CORES for scale in range(1, 10) for shift in range(10))
    for program in every:
        if program.operations:
            distinct.setdefault(tuple(map(program, _POINTS)), program)
    return {program.text: program for program in distinct.values()}


@functools.cache
def programs_by_split() -> dict[str, tuple[str, ...]]:
    """The texts of each split."""
    return by_split(tuple(programs()))


@functools.cache
def _programs_with() -> dict[tuple[Point, int], int]:
    """Per point and value the set of programs that have it there, as the bits of an integer."""
    found: dict[tuple[Point, int], int] = {}
    for bit, program in enumerate(programs().values()):
        for point in _POINTS:
            key = point, program(point)
            found[key] = found.get(key, 0) | 1 << bit
    return found


def _test(program: Program, points: Sequence[Point]) -> str:
    return f"assert [f(x, y) for x, y in {list(points)}] == {[program(point) for point in points]}"
