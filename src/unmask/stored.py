"""Generations in files: half an evaluation to go on with, and finished ones to judge again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmask.errors import UserError
from unmask.messages import short
from unmask.pictures import is_uri, open_picture
from unmask.run_directory import read_jsonl as read_rows
from unmask.run_directory import write_text
from unmask.tasks.base import Row, Task
from unmask.tasks.files import read_jsonl, sha256_of

Record = dict[str, Any]


class Partial:
    """The judged answers of an evaluation that goes on: the settings, then a line per batch, appended when it is done.

    An answer is found again by (`index`, `copy`). A batch that was cut off while being written is forgotten.

    Args:
        path: the file; one per process.
        settings: JSON-safe; those of another evaluation raise UserError.
        resume: go on with what is there.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], resume: bool):
        self.path = path
        rows = read_rows(path) if resume else []
        if rows:
            ours = isinstance(rows[0], dict) and all(map(_is_batch, rows[1:]))
            require_same(rows[0].get("settings") if ours else None, settings, path)
        self._known = {(str(item["index"]), str(item["copy"])): item for batch in rows[1:] for item in batch["batch"]}
        lines = [{"settings": settings}, *rows[1:]]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def batch(self, part: Sequence[tuple[int, int]]) -> list[Record]:
        """The records of a batch, if it is whole; else none."""
        keys = [(str(index), str(copy)) for index, copy in part]
        return [self._known[key] for key in keys] if all(key in self._known for key in keys) else []

    def keep(self, records: Sequence[Record]) -> None:
        """Adds a batch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"batch": records}) + "\n")


def _is_batch(row: Any) -> bool:
    batch = row.get("batch") if isinstance(row, dict) else None
    return isinstance(batch, list) and all(
        isinstance(item, dict) and {"index", "copy"} <= item.keys() for item in batch
    )


def finished(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `out` is the result of an evaluation with these settings.

    Raises:
        UserError: it is another's result, or none.
    """
    if not out.exists():
        return False
    try:
        was = json.loads(out.read_text(encoding="utf-8"))
    except ValueError:
        was = None
    require_same(was.get("settings") if isinstance(was, dict) else None, settings, out)
    return True


def require_same(was: Any, settings: Mapping[str, Any], path: Path) -> None:
    """Raises UserError where a file was written with other settings."""
    if not isinstance(was, dict):
        raise UserError(f"--resume: {path} is not an evaluation that can be resumed: choose another --out")
    changed = sorted(name for name in was.keys() | settings.keys() if was.get(name) != settings.get(name))
    if changed:
        raise UserError(
            f"--resume: the settings differ from those of {path} ({', '.join(changed)}): "
            "repeat the evaluation's own command, or choose another --out"
        )


@dataclass(frozen=True)
class Stored:
    """Generations that were read from a file.

    Args:
        path: the file.
        about: what else its JSON object says; empty for JSONL.
        items: (place for messages, record).
    """

    path: Path
    about: Record
    items: list[tuple[str, Record]]

    @property
    def sources(self) -> dict[str, str]:
        """File name -> sha256."""
        return {self.path.name: sha256_of(self.path)}

    def asked(self, task: Task) -> Task:
        """The task under the protocol of the file, where the file tells it."""
        protocol = self.about.get("protocol")
        known = isinstance(protocol, str) and protocol in task.protocols
        return replace(task, protocol=protocol) if known else task

    def of_task(self, task: str) -> list[tuple[str, Record]]:
        """The generations of one task, sorted by `index` and `copy` where they have them.

        Raises:
            UserError: there are none, or a row misses what every generation has.
        """
        for place, item in self.items:
            if not isinstance(item.get("task"), str):
                raise UserError(f"{place}: field 'task' must be the name of a task; add it")
        found = [(place, item) for place, item in self.items if item["task"] == task]
        if not found:
            tasks = ", ".join(sorted({short(item["task"], 20) for _, item in self.items})[:8])
            raise UserError(f"{self.path} holds no generation of task {task}; it holds {tasks or 'none'}")
        for place, item in found:
            if not isinstance(item.get("generation"), str):
                raise UserError(f"{place}: field 'generation' must be a text; it is what a model wrote")
            if "ground_truth" not in item:
                raise UserError(f"{place}: field 'ground_truth' is missing; it is what the answer is judged by")
            if not isinstance(item.get("question"), str | list):
                raise UserError(f"{place}: field 'question' must be a text or a list of {{role, content}}")
            for name in ("index", "copy"):
                if not isinstance(item.get(name, 0), int):
                    raise UserError(f"{place}: field {name!r} must be a whole number; correct or leave it out")
            if not isinstance(item.get("cluster"), str | None):
                raise UserError(f"{place}: field 'cluster' must be a text; correct or leave it out")
        return sorted(found, key=lambda one: (one[1].get("index", 0), one[1].get("copy", 0)))

    def picture(self, item: Record) -> Any:
        """The picture of a generation: as it is if it is text that holds it, else from the file that it names.

        Raises:
            UserError: there is no such file, or no picture in it.
        """
        text = item["generation"]
        return text if is_uri(text) else open_picture(text)

    def row(self, place: str, item: Record, task: Task) -> Row:
        """The row that the metric of the task reads."""
        question = item["question"]
        if isinstance(question, list):
            turns = [turn.get("content") for turn in question if isinstance(turn, dict)]
            question = "\n".join(turn for turn in turns if isinstance(turn, str))
        try:
            return {**task.stored_row(question, item["ground_truth"]), "id": place}
        except ValueError as error:
            raise UserError(f"{place}: {error}") from error


def read_generations(path: Path) -> Stored:
    """Generations from the JSON of an evaluation, or from JSON lines.

    Raises:
        UserError: the file cannot be read, or holds neither.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"--generations {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        content = None  # JSON lines, or broken ones: told with their row
    if not isinstance(content, dict) or "generations" not in content:
        return Stored(path, {}, read_jsonl(path))
    generations = content.pop("generations")
    if not isinstance(generations, list) or not all(isinstance(item, dict) for item in generations):
        raise UserError(f"{path}: 'generations' must be a list of objects")
    return Stored(path, content, [(f"{path}, generation {n}", item) for n, item in enumerate(generations, start=1)])
