"""GSM8K: grade-school word problems with whole-number answers (Cobbe et al. 2021, arXiv 2110.14168)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.d1 import D1Number
from unmask.rewards.text import Format, Integer, Number, gold_number
from unmask.tasks.base import Row, Task
from unmask.tasks.files import check_validation_share, some_part_of
from unmask.tasks.hub import Source
from unmask.tasks.protocols import OF_MATHEMATICS, Protocol

INSTRUCTIONS = r"""You are an expert in mathematics. Work through the problem below step by step, then state the result.
Write your reply in this layout, with the final number inside \boxed{}:
<reasoning>
the steps that lead to the result
</reasoning>
<answer>
\boxed{the final number}
</answer>"""


@dataclass(frozen=True)
class GSM8K(Task):
    r"""Word problems whose answer is one number, asked for in `\boxed{}` after a `<reasoning>` block.

    Rows have the fields `question` and `answer`, where the answer ends in `#### NUMBER`. Validation is a slice of the
    training rows, chosen by a stable hash of the question. One file serves all splits: `train` and `validation` are
    parts of it, `test` is all of it, so name a folder where both training and testing are wanted.

    Args:
        data: a folder with train.jsonl and test.jsonl, one JSONL file, or the id of a hub data set.
        subset: the hub data set's configuration; not used for files.
        validation_share: of the training rows, held out.
    """

    name: ClassVar[str] = "gsm8k"

    protocols: ClassVar[Mapping[str, Protocol]] = OF_MATHEMATICS
    other_parsers: ClassVar[Mapping[str, Reward]] = {"d1": D1Number()}

    data: str = "openai/gsm8k"
    subset: str = "main"
    validation_share: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        check_validation_share(self.name, self.validation_share)

    def rows(self, split: str) -> Sequence[Row]:
        if split not in ("train", "validation", "test"):
            raise self.no_split(split)
        source = self._source(split)
        rows = [self._row(place, row, source.part) for place, row in source.rows()]
        if split == "test":
            return rows
        keys = [row["question"].strip() for row in rows]
        return some_part_of(split, rows, keys, self.validation_share, self.name, self.data)

    def rewards(self) -> list[Weighted]:
        return [
            Weighted(Number(), 2.0),
            Weighted(Integer(), 0.5),
            Weighted(Format(opened=bool(self.asked_as.prefill), tag=self.asked_as.tag), 0.5),
        ]

    @property
    def success(self) -> Reward:
        return Number()

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        del question
        gold_number(ground_truth)
        return {"answer": ground_truth}

    def sources(self, split: str) -> dict[str, str]:
        return self._source(split).sha256()

    def _source(self, split: str) -> Source:
        return Source(self.data, "test" if split == "test" else "train", self.subset)

    def _row(self, place: str, row: dict[str, Any], part: str) -> Row:
        for field in ("question", "answer"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise UserError(f"{place}: field {field!r} must be a text that is not empty; correct or remove the row")
        try:
            gold_number(row["answer"])
        except ValueError as error:
            raise UserError(f"{place}: field 'answer': {error}; it must end in #### and a number") from error
        protocol = self.asked_as
        prompt = protocol.chat(protocol.tagged(INSTRUCTIONS), row["question"].strip())
        built = {**row, "prompt": prompt, "id": f"gsm8k-{part}-{place.rpartition(' ')[2]}"}
        steps, marked, gold = row["answer"].rpartition("####")
        if marked and steps.strip():
            built["completion"] = _demonstration(steps, gold, protocol.tag).removeprefix(protocol.prefill)
        return built


def _demonstration(steps: str, gold: str, tag: str) -> str:
    """The reference solution in the layout that the prompt asks for, without the calculator marks `<<..>>`."""
    reasoning = re.sub(r"<<[^<>]*>>", "", steps).strip()
    number = gold.replace(",", "").replace("$", "").strip()
    return f"<{tag}>\n{reasoning}\n</{tag}>\n<answer>\n\\boxed{{{number}}}\n</answer>"
