"""Rows of files of several kinds: JSON, JSON lines, comma or tab separated values, lines of text."""

import csv
import json
from pathlib import Path
from typing import Any

from unmask.errors import UserError
from unmask.tasks.files import read_jsonl

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
LONGEST_CELL = 2**20
"""Characters of a cell, at most."""


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file of one of the kinds in `SUFFIXES`, each with its place for messages, which ends in ` N`.

    JSON holds a list of objects or texts; a text stands for {"prompt": text}, as does a line of a text file. In tab
    separated values quotes are characters like others. Blank lines are skipped.

    Raises:
        UserError: the file is missing, empty, not UTF-8, of another kind, or a row is none.
    """
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return read_jsonl(path)
    if kind not in SUFFIXES:
        raise UserError(f"data file {path} is none of {', '.join(SUFFIXES)}: convert or rename it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"data file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data file {path} is not UTF-8 text (byte {error.start}); convert it") from error
    if kind == ".json":
        rows = _json(path, text)
    elif kind == ".txt":
        lines = enumerate(text.split("\n"), start=1)
        rows = [(f"{path}, row {n}", {"prompt": line.strip()}) for n, line in lines if line.strip()]
    else:
        rows = _separated(path, text, kind == ".tsv")
    if not rows:
        raise UserError(f"data file {path} has no rows")
    return rows


def _json(path: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"data file {path} is not JSON ({error}); for one object per line name it .jsonl") from error
    if not isinstance(content, list):
        raise UserError(f"data file {path} holds a JSON {type(content).__name__}, but a list of rows is needed")
    rows = []
    for number, row in enumerate(content, start=1):
        place = f"{path}, row {number}"
        if not isinstance(row, dict | str):
            raise UserError(f"{place}: a JSON {type(row).__name__}, but each row must be an object or a text")
        rows.append((place, {"prompt": row} if isinstance(row, str) else row))
    return rows


def _separated(path: Path, text: str, tabs: bool) -> list[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(
        text.splitlines(keepends=True),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=not tabs,
    )
    rows, header = [], None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                continue
            place = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise UserError(f"{place}: {len(cells)} cells under {len(header)} columns; quote cells with separators")
            rows.append((place, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not comma separated values ({error}); correct it") from error
    return rows
