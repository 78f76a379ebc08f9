"""Where the rows of a benchmark come from: a local file, a folder of them, or a hub data set."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import UserError
from unmask.tasks.files import read_jsonl, sha256_of
from unmask.tasks.tables import read_rows

KINDS = (".jsonl", ".json", ".csv", ".tsv")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """One part (`train`, `test` ...) of a data set.

    What looks like a local path never goes to the hub: it exists, its parent does, or it ends as a file does (`KINDS`).

    Args:
        data: a file, which is all parts; a folder with PART.jsonl, .json, .csv or .tsv, of which the first is read; or
            the id of a hub data set. JSON is a list of rows, or one per line; cells of .csv and .tsv are texts.
        part: the split of a hub data set.
        subset: its configuration.
    """

    data: str
    part: str
    subset: str | None = None

    @property
    def path(self) -> Path | None:
        """The local file; None: the hub."""
        path = Path(self.data).expanduser()
        if path.is_dir():
            files = [path / f"{self.part}{kind}" for kind in KINDS]
            return next((file for file in files if file.exists()), files[0])
        is_hub = _HUB_ID.fullmatch(self.data) and path.suffix not in KINDS and not path.parent.exists()
        return path if path.exists() or not is_hub else None

    def rows(self) -> list[tuple[str, dict[str, Any]]]:
        """The rows, each with its place for error messages, which ends in ` N` (from 1).

        Raises:
            UserError: they cannot be read.
        """
        if self.path is not None:
            return _rows_of_file(self.path)
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise UserError(
                f"{self.data} is a hub data set, which needs `pip install datasets`; "
                "or name a local file or folder with --data"
            ) from error
        try:
            loaded = load_dataset(self.data, self.subset, split=self.part)
        except Exception as error:  # the hub's client raises dozens of kinds; none of them is worth a traceback
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            subset = "" if self.subset is None else f" ({self.subset})"
            raise UserError(
                f"hub data set {self.data}{subset} cannot be loaded: {reason}; "
                "check the id and the network, or name a local file or folder with --data"
            ) from error
        return [(f"{self.data} {self.part}, row {i}", dict(row)) for i, row in enumerate(loaded, start=1)]

    def sha256(self) -> dict[str, str]:
        """File name -> hash of its bytes; of a hub data set, of its rows as JSON lines."""
        if self.path is not None:
            return {self.path.name: sha256_of(self.path)}
        lines = "".join(json.dumps(row, sort_keys=True) + "\n" for _, row in self.rows())
        return {self.data: hashlib.sha256(lines.encode()).hexdigest()}


def _rows_of_file(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a table, of a JSON list, or else of JSON lines."""
    kind = path.suffix.lower()
    return read_rows(path) if kind in (".csv", ".tsv") or (kind == ".json" and _is_list(path)) else read_jsonl(path)


def _is_list(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return next((line.lstrip()[0] for line in file if line.strip()), "") == "["
    except (OSError, UnicodeDecodeError):
        return False  # told by what reads it
