"""A user's own prompts from a JSONL file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.rewards.base import PerItem, Reward, Score, Weighted
from unmask.tasks.base import Row, Task
from unmask.tasks.files import held_out, read_jsonl, sha256_of
from unmask.tasks.protocols import Protocol


@dataclass(frozen=True)
class Unjudged(PerItem):
    """The metric of a task that has none: it applies to no row. Supervised fine-tuning needs no other."""

    name: ClassVar[str] = "unjudged"

    def judge(self, completion: str, row: Mapping[str, Any]) -> Score:
        del completion, row
        return Score.not_applicable()


@dataclass(frozen=True)
class Prompts(Task):
    """Rows of a JSONL file: `prompt` (a text, or a chat: a list of {role, content}) and any other columns.

    Other columns are handed to the rewards as they are. For supervised fine-tuning a row has a text `completion`; or,
    instead of both, `messages`: a chat whose last turn, the assistant's, is the completion. There is no test split;
    validation is a slice chosen by a stable hash of the prompt. There are no rewards of its own (`rewards` raises), and
    the metric is `Unjudged`.

    Args:
        data: the JSONL file.
        validation_share: of the rows, held out.
    """

    name: ClassVar[str] = "prompts"
    protocols: ClassVar[Mapping[str, Protocol]] = {"user": Protocol()}

    protocol: str = "user"
    data: str = ""
    validation_share: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.validation_share < 1:
            raise UserError(f"task prompts: validation_share must be in [0, 1), not {self.validation_share}")

    def rows(self, split: str) -> Sequence[Row]:
        if split not in ("train", "validation"):
            raise self.no_split(split, ("train", "validation"))
        path = self._path()
        rows = [_row(place, row) for place, row in read_jsonl(path)]
        out = held_out([json.dumps(row["prompt"], sort_keys=True) for row in rows], self.validation_share)
        chosen = [row for row, held in zip(rows, out, strict=True) if held == (split == "validation")]
        if not chosen:
            raise UserError(f"task prompts: {path} has no rows for {split}; raise validation_share or add rows")
        return chosen

    def rewards(self) -> list[Weighted]:
        raise UserError("task prompts has no reward of its own; name one with --reward NAME or FILE.py:FUNCTION")

    @property
    def success(self) -> Reward:
        return Unjudged()

    def sources(self, split: str) -> dict[str, str]:
        del split
        return {self._path().name: sha256_of(self._path())}

    def _path(self) -> Path:
        if not self.data:
            raise UserError("task prompts needs a file: name it with --data FILE (JSONL with a column 'prompt')")
        return Path(self.data).expanduser()


def _row(place: str, row: dict[str, Any]) -> Row:
    built = {"id": place.rpartition(" ")[2], **row}
    if "prompt" not in row and "messages" in row:
        chat = _chat(place, "messages", built.pop("messages"))
        if chat[-1]["role"] != "assistant" or len(chat) < 2:
            raise UserError(f"{place}: field 'messages' must end in an assistant's turn that answers something")
        built |= {"prompt": chat[:-1], "completion": chat[-1]["content"]}
    elif "prompt" not in row:
        raise UserError(f"{place}: field 'prompt' is missing; write a text, a list of {{role, content}}, or 'messages'")
    elif not isinstance(row["prompt"], str):
        built["prompt"] = _chat(place, "prompt", row["prompt"])
    if not built["prompt"]:
        raise UserError(f"{place}: field 'prompt' is empty; write a text or a list of {{role, content}}")
    if not isinstance(built.get("completion", ""), str):
        raise UserError(f"{place}: field 'completion' must be a text, not a {type(built['completion']).__name__}")
    return built


def _chat(place: str, field: str, chat: Any) -> list[dict[str, Any]]:
    if not isinstance(chat, list) or not chat:
        raise UserError(f"{place}: field {field!r} must be a list of {{role, content}}, not {json.dumps(chat)[:60]}")
    for turn in chat:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise UserError(f"{place}: field {field!r}: each turn needs the texts 'role' and 'content'")
    return chat
