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

    def keep(self, index: int, copy: int, picture: Any) -> str:
        """Writes a picture of a row; returns where."""
        place = self.folder / f"{index:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        if not (place / "metadata.jsonl").exists():
            write_text(place / "metadata.jsonl", json.dumps(_columns(self.rows[index])) + "\n")
        file = place / "samples" / f"{copy:04d}.png"
        with writing(file):
            temporary = file.with_name(f".{file.name}.tmp")
            picture.save(temporary, format="PNG")
            os.replace(temporary, file)
        return str(file)


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the data."""
    return {name: value for name, value in row.items() if name not in _OURS}
