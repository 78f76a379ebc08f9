"""The reward of programs: the share of a row's tests that they pass, run in a sandbox."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from unmask.errors import UserError
from unmask.rewards.base import Row, Score
from unmask.rewards.sandbox import CodeExecutor, CodeJob, CodeResult, LocalSandbox
from unmask.rewards.text import TextReward, Unreadable, visible_text

_FENCE = re.compile(r"```+([\w+#.-]*)[ \t]*(?:\r?\n)?")
_PYTHON = ("python", "py", "python3", "")


def fenced_code(text: str) -> str:
    """The program in a text: the last closed fence of Python or of no language; if none is closed, the last opened.

    Raises:
        Unreadable: there is no such fence.
    """
    closed: list[str] = []
    start, language = None, ""
    for fence in _FENCE.finditer(text):
        opens = fence[1].lower()
        if start is not None and (opens not in _PYTHON or not opens):
            if language in _PYTHON:
                closed.append(text[start : fence.start()])
            start = None
        else:  # also inside a fence that was not closed: a new program begins
            start, language = fence.end(), opens
    if closed:
        return closed[-1]
    if start is None or language not in _PYTHON:
        raise Unreadable("no code")
    return text[start:]


@dataclass(frozen=True)
class Code(TextReward):
    """The share of the row's `tests` that the program passes. A text without a program is invalid, and nothing is run.

    A program that is no Python, lacks the asked function, runs out of time or memory, or dies, fails tests: that is its
    own doing, hence `ok`. `infra_error` is only what the sandbox got wrong before it had seen the program. Of equal
    programs with equal tests in one call one is run.

    Columns of a row: `tests`, a list of Python sources that pass by running to their end; optional `setup`, which runs
    before each test; `entry`, the name of the function under test; and `prelude`, which is put before the program.
    `details.tests` has the outcome of each test (`unmask.rewards.sandbox.CodeResult`).

    Args:
        all_or_nothing: 1 if all tests pass, else 0.
        sandbox: where programs run.

    Raises:
        UserError: on call: a row has no usable tests, or no sandbox can start here (that also in `for_tokens`).
    """

    name: ClassVar[str] = "code"

    all_or_nothing: bool = False
    sandbox: CodeExecutor = field(default_factory=LocalSandbox)

    def for_tokens(self, end: Sequence[str], mask: Sequence[str] = ()) -> Self:
        self.sandbox.check()  # a run asks for this at its start: the moment to learn that no program can be judged
        return super().for_tokens(end, mask)

    def __call__(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        read = [self._job_or_score(completion, row) for completion, row in zip(completions, rows, strict=True)]
        jobs = list(dict.fromkeys(item for item in read if isinstance(item, CodeJob)))  # siblings often write the same
        results = dict(zip(jobs, self.sandbox.run(jobs), strict=True))
        return [self._score(results[item]) if isinstance(item, CodeJob) else item for item in read]

    def read(self, text: str, row: Row) -> Score:
        return self._score(self.sandbox.run([self.job(text, row)])[0])

    def job(self, text: str, row: Row) -> CodeJob:
        """The program in visible text with the tests of its row.

        Raises:
            Unreadable: there is no program.
            UserError: the row has no usable tests.
        """
        code, prelude = self.program(text, row), row.get("prelude") or ""
        return job_of(row, f"{prelude}\n{code}" if prelude else code)

    def _job_or_score(self, completion: str, row: Row) -> CodeJob | Score:
        try:
            return self.job(visible_text(completion, self.end_tokens, self.mask_tokens), row)
        except Unreadable as error:
            return Score.invalid(str(error))

    def program(self, text: str, row: Row) -> str:
        """The program in visible text.

        Raises:
            Unreadable: there is none.
        """
        del row
        return fenced_code(text)

    def _score(self, result: CodeResult) -> Score:
        if result.infra_error is not None:
            return Score.infra_error(result.infra_error)
        share = result.passed / len(result.outcomes)
        return Score.ok(float(share == 1) if self.all_or_nothing else share, tests=list(result.outcomes))


def job_of(row: Row, code: str) -> CodeJob:
    """A program and the tests of a row.

    Raises:
        UserError: the row has no tests, or they are not Python.
    """
    tests = row.get("tests")
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not all(isinstance(test, str) for test in tests):
        raise UserError(f"reward code: row {row.get('id', '?')} needs a column 'tests', a list of Python sources")
    try:
        return CodeJob(code, tuple(tests), row.get("setup") or "", row.get("entry"))
    except ValueError as error:
        raise UserError(f"reward code: row {row.get('id', '?')}: {error}") from error


@dataclass(frozen=True)
class Expression(Code):
    """As `Code`, for answers that are one bare Python expression of `x` and `y`: the tests call it as `f(x, y)`.

    What is not one line of 1 to 64 characters is invalid.
    """

    name: ClassVar[str] = "expression"

    def program(self, text: str, row: Row) -> str:
        del row
        line = text.strip()
        if not line or len(line) > 64 or len(line.splitlines()) > 1:
            raise Unreadable("not one line of at most 64 characters")
        return f"def f(x, y):\n    return ({line})"
