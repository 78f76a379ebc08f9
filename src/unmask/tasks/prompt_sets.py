"""Sets of prompts for pictures: benchmarks, and a user's own."""

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.images import HPScore, ImageRewardScore
from unmask.tasks.base import Row, Task
from unmask.tasks.files import check_validation_share, sha256_of, some_part_of
from unmask.tasks.hub import Source
from unmask.tasks.own import Unjudged
from unmask.tasks.protocols import Usual
from unmask.tasks.tables import SUFFIXES, read_rows


@dataclass(frozen=True)
class PromptSet(Task, ABC):
    """Prompts for pictures from a file, a folder of files, or a hub data set. Has a test split only.

    Columns of the data are kept in the rows. There is no success or failure (`Unjudged`): an evaluation reports the
    means of `measures`, and of the rewards that it is asked for.

    Args:
        answer_length: codes of a picture: those of the model's size.
        data: a file (.jsonl, .json, .csv, .tsv, .txt), a folder of them (the name of a file is then the category of its
            rows), or the id of a hub data set.
        part: which split of a hub data set.
    """

    answers: ClassVar[Literal["text", "image"]] = "image"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    prompt_columns: ClassVar[tuple[str, ...]] = ("prompt",)  # the first that is there
    id_column: ClassVar[str] = "id"
    category_column: ClassVar[str] = "category"

    answer_length: int = Usual(1024)
    data: str = ""
    part: str = "train"

    def rows(self, split: str) -> Sequence[Row]:
        if split not in self.splits:
            raise self.no_split(split, self.splits)
        return self._read()

    def rewards(self) -> list[Weighted]:
        raise UserError(f"task {self.name} has no reward of its own; name one with --reward, e.g. clip")

    @property
    def success(self) -> Reward:
        return Unjudged()

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        del ground_truth
        return {"prompt": question}

    def sources(self, split: str) -> dict[str, str]:
        del split
        files = self._files()
        return {file.name: sha256_of(file) for file in files} if files else self._hub().sha256()

    def _read(self) -> list[Row]:
        """All rows, one per id."""
        found: dict[str, Row] = {}
        files = self._files()
        for file in files or [None]:
            for place, row in self._hub().rows() if file is None else read_rows(file):
                built = self._row(place, row, file.stem if file is not None and len(files) > 1 else None)
                known = found.setdefault(built["id"], built)
                if known["prompt"] != built["prompt"]:
                    raise UserError(f"{place}: {self.id_column} {built['id']!r} has another prompt in an earlier row")
        return list(found.values())

    def _row(self, place: str, row: Mapping[str, Any], category: str | None) -> Row:
        column = next((name for name in self.prompt_columns if name in row), None)
        if column is None:
            columns = " or ".join(map(repr, self.prompt_columns))
            raise UserError(f"{place}: column {columns} is missing; the row has {', '.join(map(str, row)) or 'none'}")
        prompt = row[column]
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{place}: column {column!r} must be a text that is not empty; correct or remove the row")
        number = place.rpartition(" ")[2]
        own = row.get(self.id_column)
        if own is not None and not isinstance(own, str | int):
            raise UserError(f"{place}: column {self.id_column!r} must be a text or a whole number")
        name = f"{category}-{number}" if category else f"{self.name}-{number}"
        return {
            **row,
            "prompt": prompt.strip(),
            "id": name if own is None else str(own),
            "category": category or row.get(self.category_column) or None,
        }

    def _files(self) -> list[Path]:
        """The local files; none: the hub. What looks like a local path never goes to the hub."""
        if not self.data:
            raise UserError(f"task {self.name} needs its prompts: name a file or a folder with --data")
        path = Path(self.data).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not files:
                raise UserError(f"task {self.name}: {path} holds no file of {', '.join(SUFFIXES)}")
            return files
        return [path] if path.suffix.lower() in SUFFIXES or self._hub().path is not None else []

    def _hub(self) -> Source:
        return Source(self.data, self.part)


@dataclass(frozen=True)
class ImagePrompts(PromptSet):
    """A user's own prompts for pictures: column `prompt`, or one per line of a text file.

    The test split is all of them; train and validation are its parts, cut by a stable hash of the prompt. Other columns
    are handed to the rewards.

    Args:
        validation_share: of the rows, held out.
    """

    name: ClassVar[str] = "image-prompts"
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    validation_share: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        check_validation_share(self.name, self.validation_share)

    def rows(self, split: str) -> Sequence[Row]:
        rows = super().rows(split)
        if split == "test":
            return rows
        keys = [row["prompt"] for row in rows]
        return some_part_of(split, rows, keys, self.validation_share, self.name, self.data)


@dataclass(frozen=True)
class DPG(PromptSet):
    """DPG-Bench (arXiv 2403.05135): 1065 long prompts, in `prompt` or `text`; rows with one `item_id` are one prompt.

    Its own score asks a VQA model about the pictures, which is not done here.
    """

    name: ClassVar[str] = "dpg"
    prompt_columns: ClassVar[tuple[str, ...]] = ("prompt", "text")
    id_column: ClassVar[str] = "item_id"


@dataclass(frozen=True)
class HPSv2Prompts(PromptSet):
    """The prompts of HPSv2 (arXiv 2306.09341): a folder with a JSON list of 800 texts per style.

    Its score is the mean of `hps`, times 100, per style and over all.

    Args:
        judge: the reward.
    """

    name: ClassVar[str] = "hpsv2"

    judge: HPScore = field(default_factory=HPScore)

    def measures(self) -> list[Reward]:
        return [self.judge]


@dataclass(frozen=True)
class ImageRewardPrompts(PromptSet):
    """The 100 test prompts of ImageReward (arXiv 2304.05977): JSON with `id` and `prompt`. Its score is the mean.

    Args:
        judge: the reward.
    """

    name: ClassVar[str] = "imagereward"

    judge: ImageRewardScore = field(default_factory=ImageRewardScore)

    def measures(self) -> list[Reward]:
        return [self.judge]


@dataclass(frozen=True)
class PartiPrompts(PromptSet):
    """PartiPrompts (arXiv 2206.10789): 1632 prompts as tab separated values with `Prompt`, `Category`, `Challenge`."""

    name: ClassVar[str] = "parti"
    prompt_columns: ClassVar[tuple[str, ...]] = ("Prompt",)
    category_column: ClassVar[str] = "Category"
