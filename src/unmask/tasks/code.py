"""Python programming problems with unit tests: MBPP, HumanEval, AceCode. Programs run in a sandbox."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.code import Code
from unmask.rewards.sandbox import CodeExecutor, CodeJob, LocalSandbox
from unmask.tasks.base import Row, Task
from unmask.tasks.files import check_validation_share, part_of
from unmask.tasks.hub import Source
from unmask.tasks.protocols import MASKGRPO_CODE, UNMASK, Protocol, Usual

INSTRUCTIONS = """You are an expert Python programmer. Write the function that the task below asks for.
Use the standard library only; do not read input, print, or write files.
Reply with the complete code, imports included, in one block:
```python
the code
```"""

_JUDGED_BY = ("tests", "setup", "entry", "prelude")
"""Columns that the reward reads."""


@dataclass(frozen=True)
class CodeTask(Task, ABC):
    """Problems from a JSONL file or a hub data set, rewarded by the share of tests passed, solved when all pass.

    The `answer` of a row is what a program is judged by, so that stored generations can be judged again by themselves.

    Args:
        data: a JSONL file with all splits, or the id of a hub data set.
        sandbox: where programs run.
    """

    splits: ClassVar[tuple[str, ...]]

    data: str = ""
    sandbox: CodeExecutor = field(default_factory=LocalSandbox)

    def rows(self, split: str) -> Sequence[Row]:
        if split not in self.splits:
            raise self.no_split(split, self.splits)
        source = self._source(split)
        rows = [self._row(place, row, number) for number, (place, row) in enumerate(source.rows(), start=1)]
        chosen = self._of_split(rows, split)
        if not chosen:
            raise UserError(f"task {self.name}: {self.data} has no rows for {split}; {self._why_none(split)}")
        return [{**row, "answer": {name: row[name] for name in _JUDGED_BY if row.get(name)}} for row in chosen]

    def rewards(self) -> list[Weighted]:
        return [Weighted(Code(sandbox=self.sandbox))]

    @property
    def success(self) -> Reward:
        return Code(all_or_nothing=True, sandbox=self.sandbox)

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        """The ground truth of our records, or a list of tests."""
        del question
        row: Row = ground_truth if isinstance(ground_truth, dict) else {"tests": ground_truth}
        tests, others = row.get("tests"), [row.get(name, "") for name in _JUDGED_BY[1:]]
        if not isinstance(tests, list) or not tests or not all(isinstance(text, str) for text in [*tests, *others]):
            raise ValueError("the ground truth must be a list of Python tests, or {tests, setup, entry, prelude}")
        CodeJob("", tuple(tests), row.get("setup", ""))
        return row

    def sources(self, split: str) -> dict[str, str]:
        return self._source(split).sha256()

    @abstractmethod
    def _row(self, place: str, row: Mapping[str, Any], number: int) -> Row:
        """A row of the task from row `number` of the data. Raises UserError where it does not fit."""

    @abstractmethod
    def _of_split(self, rows: list[Row], split: str) -> list[Row]:
        """Those rows of the data that belong to a split."""

    @abstractmethod
    def _hub(self, split: str) -> tuple[str | None, str]:
        """Configuration and split of the hub data set."""

    def _why_none(self, split: str) -> str:
        del split
        return "name another file"

    def _source(self, split: str) -> Source:
        subset, part = self._hub(split)
        return Source(self.data, part, subset)


@dataclass(frozen=True)
class MBPP(CodeTask):
    """Mostly Basic Python Problems (Austin et al. 2021, arXiv 2108.07732): a sentence and three asserts.

    The full set (`text`, `code`, `task_id`, `test_list`, `test_setup_code`) or the sanitized one (`prompt`, `code`,
    `test_list`, `test_imports`). A `task_id` tells the official split: 11-510 test, 511-600 validation, 601-974 train;
    1-10 belong to few-shot prompts and to no split. Rows without one are test rows.

    Args:
        data: a JSONL file with all splits, or the id of a hub data set.
        subset: of the hub data set: `full` or `sanitized`.
        shown_tests: tests that the prompt shows, the others are hidden. The official prompt shows all three; at least
            one is needed, since only the tests tell the function's name. The protocol `maskgrpo` shows all.
    """

    name: ClassVar[str] = "mbpp"
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    protocols: ClassVar[Mapping[str, Protocol]] = {"unmask": UNMASK, "maskgrpo": MASKGRPO_CODE}

    data: str = "google-research-datasets/mbpp"
    subset: str = "full"
    shown_tests: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.shown_tests < 1:
            raise UserError(f"task mbpp: shown_tests must be at least 1, not {self.shown_tests}")

    def _row(self, place: str, row: Mapping[str, Any], number: int) -> Row:
        problem = _text(place, row, "text" if "text" in row else "prompt")
        tests = _texts(place, row, "test_list")
        task_id = row.get("task_id")
        if task_id is not None and type(task_id) is not int:
            raise UserError(f"{place}: field 'task_id' must be a whole number, not {task_id!r}; correct it")
        setup = "\n".join([*(row.get("test_imports") or []), row.get("test_setup_code") or ""])
        shown = "\n".join(tests[: None if self.protocol == "maskgrpo" else self.shown_tests])
        return _checked(
            place,
            {
                "id": f"mbpp-{number if task_id is None else task_id}",
                "prompt": _ask(f"{problem}\nThe code must pass tests like this:\n{shown}"),
                "text": problem,
                "tests": tests,
                "setup": setup.replace("\r\n", "\n").strip(),
                "completion": _fenced(_text(place, row, "code")),
                "split": "test" if task_id is None else _mbpp_split(task_id),
            },
        )

    def _of_split(self, rows: list[Row], split: str) -> list[Row]:
        return [row for row in rows if row["split"] == split]

    def _hub(self, split: str) -> tuple[str | None, str]:
        return self.subset, split

    def _why_none(self, split: str) -> str:
        return f"its rows need a 'task_id' of that split; rows without one are test rows, not {split}"


@dataclass(frozen=True)
class HumanEval(CodeTask):
    """HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 functions to complete, for evaluation only.

    Rows have `task_id`, `prompt` (imports, signature, docstring), `canonical_solution`, `test` (a function `check`) and
    `entry_point`. What a program lacks of the prompt is put before it, so imports and helpers need not be repeated; the
    tests see the prompt's own helpers, not those of the program.
    """

    name: ClassVar[str] = "humaneval"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    answer_length: int = Usual(512)
    data: str = "openai/openai_humaneval"

    def _row(self, place: str, row: Mapping[str, Any], number: int) -> Row:
        start, entry = _text(place, row, "prompt"), _text(place, row, "entry_point")
        if not entry.isidentifier():
            raise UserError(f"{place}: field 'entry_point' must be the name of a function, not {entry!r}")
        built = {
            "id": str(row.get("task_id") or f"humaneval-{number}"),
            "prompt": _ask(f"Complete this function:\n```python\n{start.strip()}\n```"),
            "tests": [f"{_text(place, row, 'test')}\n\ncheck({entry})"],
            "setup": f"{start.rstrip()}\n    pass\n",
            "prelude": f"{start.rstrip()}\n    pass\n",
            "entry": entry,
        }
        if row.get("canonical_solution"):
            built["completion"] = _fenced(start + _text(place, row, "canonical_solution"))
        return _checked(place, built)

    def _of_split(self, rows: list[Row], split: str) -> list[Row]:
        del split
        return rows

    def _hub(self, split: str) -> tuple[str | None, str]:
        return None, split


@dataclass(frozen=True)
class AceCode(CodeTask):
    """AceCode (Zeng et al. 2025, arXiv 2502.01718): 87k problems with synthesised asserts, for training.

    Rows have `question`, which names the function and shows no test, and `test_cases`, a list of asserts. There is no
    test split; validation is a slice chosen by a stable hash of the question. Tests are parsed when a program is first
    judged by them, not when the rows are read: there are more than a million.

    Args:
        data: a JSONL file, or the id of a hub data set.
        validation_share: of the rows, held out.
    """

    name: ClassVar[str] = "acecode"
    splits: ClassVar[tuple[str, ...]] = ("train", "validation")

    answer_length: int = Usual(512)
    data: str = "TIGER-Lab/AceCode-87K"
    validation_share: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        check_validation_share(self.name, self.validation_share)

    def _row(self, place: str, row: Mapping[str, Any], number: int) -> Row:
        question = _text(place, row, "question")
        return {
            "id": str(row.get("id") or f"acecode-{number}"),
            "prompt": _ask(question),
            "text": question,
            "tests": _texts(place, row, "test_cases"),
        }

    def _of_split(self, rows: list[Row], split: str) -> list[Row]:
        return part_of(split, rows, [row["text"] for row in rows], self.validation_share)

    def _hub(self, split: str) -> tuple[str | None, str]:
        del split
        return None, "train"

    def _why_none(self, split: str) -> str:
        del split
        return "raise validation_share or add rows"


def _mbpp_split(task_id: int) -> str:
    parts = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
    return next((split for split, ids in parts.items() if task_id in ids), "few-shot")


def _ask(problem: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{INSTRUCTIONS}\n\n{problem}"}]


def _fenced(code: str) -> str:
    """The demonstration of a solution in the layout that the prompt asks for."""
    return f"```python\n{code.strip()}\n```"


def _text(place: str, row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: field {name!r} must be a text that is not empty; correct or remove the row")
    return value.replace("\r\n", "\n")


def _texts(place: str, row: Mapping[str, Any], name: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, Sequence) or not value or not all(isinstance(item, str) for item in value):
        raise UserError(f"{place}: field {name!r} must be a list of Python tests; correct or remove the row")
    if isinstance(value, str):
        raise UserError(f"{place}: field {name!r} is one text, but must be a list of Python tests")
    return [item.replace("\r\n", "\n") for item in value]


def _checked(place: str, row: Row) -> Row:
    try:
        CodeJob("", tuple(row["tests"]), row.get("setup") or "")
    except ValueError as error:
        raise UserError(f"{place}: {error}; correct or remove the row") from error
    return row
