"""Pictures of an evaluation as files, in the layout that GenEval's own evaluation reads."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.errors import UserError
from unmask.run_directory import write_text, writing
from unmask.tasks.base import Row

_OURS = ("id", "category", "answer", "cluster", "completion")


class PictureFolder:
    """DIR/00000/metadata.jsonl (the columns of row 0), DIR/00000/samples/0000.png (its first picture), and so on.

    Args:
        folder: new or empty, unless the evaluation goes on.
        rows: of the split, in order.
        resume: the folder may hold pictures of the same evaluation.

    Raises:
        UserError: the folder holds something.
    """

    def __init__(self, folder: Path, rows: Sequence[Row], resume: bool):
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not resume)):
            raise UserError(f"--pictures {folder} is not empty: name a new folder, or go on with --resume")
        self.folder, self.rows = folder, rows

    def describe(self) -> None:
        """Writes what the rows say; one process does it for all."""
        with writing(self.folder):
            for index, row in enumerate(self.rows):
                write_text(self._place(index) / "metadata.jsonl", json.dumps(_columns(row)) + "\n")

    def _place(self, index: int) -> Path:
        return self.folder / f"{index:05d}"

    def keep(self, index: int, copy: int, picture: Any) -> str:
        """Writes a picture of a row; returns where."""
        file = self._place(index) / "samples" / f"{copy:04d}.png"
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")  # two processes may make the same picture
            picture.save(temporary, format="PNG")
            os.replace(temporary, file)
        return str(file)


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the data."""
    return {name: value for name, value in row.items() if name not in _OURS}
