"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): are the objects of a prompt in the picture?"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.images import GenEvalObjects
from unmask.rewards.images.geneval_rules import CLASSES, COLOURS, RELATIONS, TAGS
from unmask.tasks.base import ENDLESS, Generated, Row
from unmask.tasks.geneval_prompts import TRAINED, make
from unmask.tasks.prompt_sets import PromptSet


@dataclass(frozen=True)
class GenEval(PromptSet):
    """The test prompts are GenEval's own (`evaluation_metadata.jsonl`); those to train on are generated.

    Generated rows have GenEval's form, in the five categories that have prompts left, and ask for nothing that a test
    prompt asks for. The score is the mean of the categories' shares, with another detector than GenEval's: see
    `GenEvalObjects`.

    Args:
        data: GenEval's JSONL; only for the test split.
        judge: the reward.
        data_seed: other seeds give other training rows.
        validation_items: rows of the validation set.
    """

    name: ClassVar[str] = "geneval"
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    overall: ClassVar[Literal["rows", "categories"]] = "categories"

    judge: GenEvalObjects = field(default_factory=GenEvalObjects)
    data_seed: int = 0
    validation_items: int = 150

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.validation_items <= 2000:
            raise UserError(f"task geneval: validation_items must be in [1, 2000], not {self.validation_items}")

    @property
    def parser(self) -> str:
        return "GenEval (HF detector)"

    def rows(self, split: str) -> Sequence[Row]:
        if split == "train":
            return Generated(self._generated, ENDLESS)
        if split == "validation":
            return self._validation()
        return super().rows(split)

    def rewards(self) -> list[Weighted]:
        return [Weighted(self.judge)]

    @property
    def success(self) -> Reward:
        return self.judge

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        row = {"prompt": question, **ground_truth} if isinstance(ground_truth, dict) else {}
        if wrong := _wrong(row):
            raise ValueError(f"ground_truth: {wrong}")
        return row

    def sources(self, split: str) -> dict[str, str]:
        return super().sources(split) if split == "test" else {}

    def _generated(self, i: int) -> Row:
        tag = TRAINED[i % len(TRAINED)]
        return _row(f"geneval-train-{i}", make(tag, "train", random.Random(f"geneval/{self.data_seed}/train/{i}")))

    def _validation(self) -> list[Row]:
        """Distinct rows, the same for every seed: two runs are compared on them."""
        found: dict[str, Row] = {}
        i = 0
        while len(found) < self.validation_items:
            made = make(TRAINED[i % len(TRAINED)], "validation", random.Random(f"geneval/0/validation/{i}"))
            found.setdefault(made["prompt"], _row(f"geneval-validation-{len(found)}", made))
            i += 1
        return list(found.values())

    def _row(self, place: str, row: Mapping[str, Any], category: str | None) -> Row:
        built = super()._row(place, row, category)
        if wrong := _wrong(row):
            raise UserError(f"{place}: {wrong}")
        return _row(built["id"], built)


def _row(name: str, row: Mapping[str, Any]) -> Row:
    answer = {key: row[key] for key in ("tag", "include", "exclude") if key in row}
    return {**row, "id": name, "category": row["tag"], "answer": answer}


def _wrong(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row of GenEval's metadata, and the remedy."""
    if row.get("tag") not in TAGS:
        return f"field 'tag' must be one of {', '.join(TAGS)}"
    include, exclude = row.get("include"), row.get("exclude", [])
    if not isinstance(include, list) or not include or not isinstance(exclude, list):
        return "field 'include' must be a list of {class, count}, and so must 'exclude' if it is there"
    for number, item in enumerate([*include, *exclude]):
        if not isinstance(item, dict) or item.get("class") not in CLASSES:
            name = item.get("class") if isinstance(item, dict) else item
            return f"class {str(name)[:40]!r} is none of COCO's as GenEval calls them, e.g. {CLASSES[0]!r}"
        if type(item.get("count")) is not int or not 1 <= item["count"] <= 99:
            return f"the count of {item['class']} must be a whole number from 1 to 99"
        if "color" in item and item["color"] not in COLOURS:
            return f"the color of {item['class']} must be one of {', '.join(COLOURS)}"
        place = item.get("position")
        if "position" in item and not (
            isinstance(place, list)
            and len(place) == 2
            and place[0] in RELATIONS
            and type(place[1]) is int
            and 0 <= place[1] < min(number, len(include))
        ):
            return f"the position of {item['class']} must be [one of {', '.join(RELATIONS)}, index of an earlier item]"
    return None
