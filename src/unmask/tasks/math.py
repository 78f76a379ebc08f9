"""MATH: competition problems with LaTeX answers (Hendrycks et al. 2021, arXiv 2103.03874), and its set MATH-500."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.d1 import D1Math
from unmask.rewards.math import Math, gold_text
from unmask.rewards.text import Boxed, Format, boxes
from unmask.rewards.verifier import installed
from unmask.tasks.base import Row, Task
from unmask.tasks.files import check_validation_share, some_part_of
from unmask.tasks.hub import Source
from unmask.tasks.protocols import OF_MATHEMATICS, Protocol

INSTRUCTIONS = r"""You are an expert in mathematics. Work through the problem below step by step, then state the result.
Write your reply in this layout, with the final answer in LaTeX inside \boxed{}:
<reasoning>
the steps that lead to the result
</reasoning>
<answer>
\boxed{the final answer}
</answer>"""


@dataclass(frozen=True)
class MathTask(Task):
    r"""Problems whose answer is a LaTeX expression, asked for in `\boxed{}` after a `<reasoning>` block.

    Rows have `problem` and `solution`, and `answer` where it is not the last box of the solution; `subject` or `type`,
    and `level`, are kept. Validation is a slice of the training rows, chosen by a stable hash of the problem. One file
    serves all splits: `train` and `validation` are parts of it, `test` is all of it.

    The parser is `unmask` (our rules, then math-verify) where math-verify is installed, else `unmask-rules`.

    Args:
        data: a folder with train.jsonl and test.jsonl, one JSONL file, or the id of a hub data set. There is no
            default: the licence of the problems is contested, so you name your copy.
        subset: the hub data set's configuration; not used for files.
        validation_share: of the training rows, held out.
    """

    name: ClassVar[str] = "math"
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    protocols: ClassVar[Mapping[str, Protocol]] = OF_MATHEMATICS
    other_parsers: ClassVar[Mapping[str, Reward]] = {"unmask-rules": Math(second_opinion=False), "d1": D1Math()}

    data: str = ""
    subset: str | None = None
    validation_share: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        check_validation_share(self.name, self.validation_share)

    @property
    def parser(self) -> str:
        return "unmask" if installed() else "unmask-rules"

    def metric(self, parser: str | None = None) -> Reward:
        if parser == "unmask":
            return Math(second_opinion=True)
        return super().metric(parser)

    def rows(self, split: str) -> Sequence[Row]:
        if split not in self.splits:
            raise self.no_split(split, self.splits)
        source = self._source(split)
        rows = [self._row(place, row, source.part) for place, row in source.rows()]
        if split == "test":
            return rows
        keys = [row["problem"].strip() for row in rows]
        return some_part_of(split, rows, keys, self.validation_share, self.name, self.data)

    def rewards(self) -> list[Weighted]:
        form = Format(opened=bool(self.asked_as.prefill), tag=self.asked_as.tag)
        return [Weighted(Math(), 2.0), Weighted(Boxed(), 0.5), Weighted(form, 0.5)]

    @property
    def success(self) -> Reward:
        return Math()

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        del question
        try:
            return {"answer": gold_text({"answer": ground_truth})}
        except UserError as error:
            raise ValueError("the ground truth must be a LaTeX text that is not empty") from error

    def sources(self, split: str) -> dict[str, str]:
        return self._source(split).sha256()

    def _source(self, split: str) -> Source:
        if not self.data:
            raise UserError(
                f"task {self.name} needs your copy of the data: name it with --data "
                "(a JSONL file, a folder with train.jsonl and test.jsonl, or a hub id such as HuggingFaceH4/MATH-500)"
            )
        return Source(self.data, "test" if split == "test" else "train", self.subset)

    def _row(self, place: str, row: Mapping[str, Any], part: str) -> Row:
        for field in ("problem", "solution"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise UserError(f"{place}: field {field!r} must be a text that is not empty; correct or remove the row")
        answer = row.get("answer")
        if answer is None:
            answer = next(iter(boxes(row["solution"])[-1:]), "")
            if not answer:
                raise UserError(f"{place}: no field 'answer' and no box in 'solution'; add one or remove the row")
        try:
            answer = gold_text({"answer": answer})
        except UserError as error:
            raise UserError(
                f"{place}: field 'answer' must be a text that is not empty; correct or remove it"
            ) from error
        protocol = self.asked_as
        return {
            **row,
            "id": f"{self.name}-{part}-{place.rpartition(' ')[2]}",
            "prompt": protocol.chat(protocol.tagged(INSTRUCTIONS), row["problem"].strip()),
            "answer": answer,
            "completion": _demonstration(row["solution"], answer, protocol.tag).removeprefix(protocol.prefill),
            "category": row.get("subject") or row.get("type"),
        }


@dataclass(frozen=True)
class Math500(MathTask):
    """MATH-500 (Lightman et al. 2023, arXiv 2305.20050): 500 test problems of MATH, for evaluation only."""

    name: ClassVar[str] = "math500"
    splits: ClassVar[tuple[str, ...]] = ("test",)


def _demonstration(solution: str, answer: str, tag: str) -> str:
    """The reference solution in the layout that the prompt asks for."""
    return f"<{tag}>\n{solution.strip()}\n</{tag}>\n<answer>\n\\boxed{{{answer}}}\n</answer>"
