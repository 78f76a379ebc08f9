"""Rows of local JSONL files: reading them with clear errors, hashing them, holding some out."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.errors import UserError
from unmask.tasks.base import Row, stable_share


def read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL file, each with its place (`FILE, row N`, N = the line, from 1) for error messages.

    Blank lines are skipped.

    Raises:
        UserError: the file is missing, empty or not UTF-8, or a line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"data file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data file {path} is not UTF-8 text (byte {error.start}); convert it") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, row {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON ({error}); each line must be one JSON object") from error
        if not isinstance(row, dict):
            raise UserError(f"{place}: a JSON {type(row).__name__}, but each line must be one JSON object")
        rows.append((place, row))
    if not rows:
        raise UserError(f"data file {path} has no rows; each line must be one JSON object")
    return rows


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def held_out(keys: Sequence[str], share: float) -> list[bool]:
    """Which rows are held out for validation: those whose keys have the smallest stable hashes.

    About `share` of the rows, at least one if there are two different keys; rows with equal keys stay together.
    """
    places = [stable_share(key) for key in keys]
    distinct = sorted(set(places))
    if share == 0 or len(distinct) < 2:
        return [False] * len(keys)
    bound = distinct[min(max(round(share * len(distinct)), 1), len(distinct) - 1) - 1]
    return [place <= bound for place in places]


def check_validation_share(task: str, share: float) -> None:
    """Raises UserError where it is no share that can be held out."""
    if not 0 <= share < 1:
        raise UserError(f"task {task}: validation_share must be in [0, 1), not {share}")


def part_of(split: str, rows: Sequence[Row], keys: Sequence[str], share: float) -> list[Row]:
    """Those of the rows that are held out where the split is `validation`, else the others; see `held_out`."""
    out = held_out(keys, share)
    return [row for row, held in zip(rows, out, strict=True) if held == (split == "validation")]


def some_part_of(split: str, rows: Sequence[Row], keys: Sequence[str], share: float, task: str, data: Any) -> list[Row]:
    """As `part_of`.

    Args:
        task, data: what a message names.

    Raises:
        UserError: there is no such row.
    """
    chosen = part_of(split, rows, keys, share)
    if not chosen:
        raise UserError(f"task {task}: {data} has no rows for {split}; raise validation_share or add rows")
    return chosen
