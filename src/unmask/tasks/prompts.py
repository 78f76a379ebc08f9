"""A user's own prompts from a JSONL file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.pictures import parted, with_pictures
from unmask.tasks.base import Row
from unmask.tasks.files import read_jsonl
from unmask.tasks.own import OwnRows

_TURN = {"role": str, "content": str | list}


@dataclass(frozen=True)
class Prompts(OwnRows):
    """Rows of a JSONL file: `prompt` (a text, or a chat: a list of {role, content}) and any other columns.

    Other columns are handed to the rewards as they are. `image` is a picture that the prompt is about, or a list of
    them: files, relative to the JSONL; they become parts of the prompt (`with_pictures`). For supervised fine-tuning a
    row has a text `completion`; or, instead of both, `messages`: a chat whose last turn, the assistant's, is the
    completion.

    Args:
        data: the JSONL file.
        validation_share: of the rows, held out.
    """

    name: ClassVar[str] = "prompts"
    needed: ClassVar[str] = "a file: name it with --data FILE (JSONL with a column 'prompt')"

    def read(self, path: Path) -> list[Row]:
        return [_row(path.parent, place, row) for place, row in read_jsonl(path)]

    def files(self, path: Path) -> list[Path]:
        return [path]


def _row(folder: Path, place: str, row: dict[str, Any]) -> Row:
    built = {"id": place.rpartition(" ")[2], **row}
    if "prompt" not in row and "messages" in row:
        chat = _chat(folder, place, "messages", built.pop("messages"))
        if chat[-1]["role"] != "assistant" or len(chat) < 2:
            raise UserError(f"{place}: field 'messages' must end in an assistant's turn that answers something")
        built |= {"prompt": chat[:-1], "completion": chat[-1]["content"]}
    elif "prompt" not in row:
        raise UserError(f"{place}: field 'prompt' is missing; write a text, a list of {{role, content}}, or 'messages'")
    elif not isinstance(row["prompt"], str):
        built["prompt"] = _chat(folder, place, "prompt", row["prompt"])
    if not built["prompt"]:
        raise UserError(f"{place}: field 'prompt' is empty; write a text or a list of {{role, content}}")
    if not isinstance(built.get("completion", ""), str):
        raise UserError(f"{place}: field 'completion' must be a text, not a {type(built['completion']).__name__}")
    if row.get("image") is None:
        return built
    names = row["image"] if isinstance(row["image"], list) else [row["image"]]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place}: field 'image' must be a picture file, or a list of them")
    try:
        return built | {"prompt": with_pictures(built["prompt"], [_beside(folder, name) for name in names])}
    except UserError as error:
        raise UserError(f"{place}: field 'prompt': {error}") from error


def _chat(folder: Path, place: str, field: str, chat: Any) -> list[dict[str, Any]]:
    if not isinstance(chat, list) or not chat:
        raise UserError(f"{place}: field {field!r} must be a list of {{role, content}}, not {json.dumps(chat)[:60]}")
    turns = []
    for turn in chat:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), kind) for key, kind in _TURN.items()):
            raise UserError(f"{place}: field {field!r}: each turn needs the texts 'role' and 'content'")
        if isinstance(turn["content"], list):
            turn = {**turn, "content": [_part(folder, part) for part in turn["content"]]}
        turns.append(turn)
    try:
        parted(turns)
    except UserError as error:
        raise UserError(f"{place}: field {field!r}: {error}") from error
    return turns


def _part(folder: Path, part: Any) -> Any:
    """A part of a turn, with the file of a picture found beside the JSONL."""
    if isinstance(part, dict) and part.get("type") == "image" and isinstance(part.get("image"), str):
        return {**part, "image": _beside(folder, part["image"])}
    return part


def _beside(folder: Path, picture: str) -> str:
    return picture if picture.startswith("data:") else str(folder / Path(picture).expanduser())
