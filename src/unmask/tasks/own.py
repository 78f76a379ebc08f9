"""What tasks over a user's own rows have in common: no metric, no rewards, and a validation split by hash."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.rewards.base import PerItem, Reward, Score, Weighted
from unmask.tasks.base import Row, Task
from unmask.tasks.files import check_validation_share, sha256_of, some_part_of
from unmask.tasks.protocols import Protocol


@dataclass(frozen=True)
class Unjudged(PerItem):
    """The metric of a task that has none: it applies to no row. Supervised fine-tuning needs no other."""

    name: ClassVar[str] = "unjudged"

    def judge(self, completion: str, row: Mapping[str, Any]) -> Score:
        del completion, row
        return Score.not_applicable()


@dataclass(frozen=True)
class OwnRows(Task, ABC):
    """Rows that a user brings. There is no test split; validation is a slice chosen by a stable hash of the prompt.
    There are no rewards of its own (`rewards` raises), and the metric is `Unjudged`.

    Args:
        data: where they are.
        validation_share: of the rows, held out.
    """

    protocols: ClassVar[Mapping[str, Protocol]] = {"user": Protocol()}
    needed: ClassVar[str]  # what `data` must name, as the end of a message

    protocol: str = "user"
    data: str = ""
    validation_share: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        check_validation_share(self.name, self.validation_share)

    @abstractmethod
    def read(self, path: Path) -> list[Row]:
        """All rows, each with `prompt`."""

    @abstractmethod
    def files(self, path: Path) -> list[Path]:
        """The files whose hashes name the data."""

    def key(self, row: Row) -> str:
        """Rows with equal keys fall into the same split."""
        return json.dumps(row["prompt"], sort_keys=True)

    def rows(self, split: str) -> Sequence[Row]:
        if split not in ("train", "validation"):
            raise self.no_split(split, ("train", "validation"))
        path = self._path()
        rows = self.read(path)
        keys = [self.key(row) for row in rows]
        return some_part_of(split, rows, keys, self.validation_share, self.name, path)

    def rewards(self) -> list[Weighted]:
        raise UserError(f"task {self.name} has no reward of its own; name one with --reward NAME or FILE.py:FUNCTION")

    @property
    def success(self) -> Reward:
        return Unjudged()

    def sources(self, split: str) -> dict[str, str]:
        del split
        return {file.name: sha256_of(file) for file in self.files(self._path())}

    def _path(self) -> Path:
        if not self.data:
            raise UserError(f"task {self.name} needs {self.needed}")
        return Path(self.data).expanduser()
