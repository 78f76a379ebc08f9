"""A user's own pictures with captions: a folder, a JSONL file, or tars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from unmask.errors import UserError
from unmask.pictures import PictureFile
from unmask.rewards.base import Reward, Weighted
from unmask.tasks.base import Row, Task
from unmask.tasks.files import held_out, read_jsonl, sha256_of
from unmask.tasks.prompts import Unjudged
from unmask.tasks.protocols import Protocol
from unmask.tasks.tars import SUFFIXES, captioned_pictures


@dataclass(frozen=True)
class Captioned(Task):
    """Captions, and pictures to learn from.

    From a JSONL file: rows with `prompt` and, for supervised fine-tuning, `image`: a picture file, relative to the
    JSONL. Other columns are handed to the rewards. From a folder: every picture with a text file of the same name, its
    caption. From tars (WebDataset), one file or a folder of them: see `captioned_pictures`. Pictures are opened when
    they are needed, scaled and cut to the model's size. There is no test split; validation is a slice chosen by a
    stable hash of the caption. There are no rewards of its own (`rewards` raises), and the metric is `Unjudged`.

    Args:
        answer_length: codes of a picture: those of the model's size.
        data: the JSONL file, the folder or the tar.
        validation_share: of the rows, held out.
    """

    name: ClassVar[str] = "captioned"
    answers: ClassVar[Literal["text", "image"]] = "image"
    protocols: ClassVar[Mapping[str, Protocol]] = {"user": Protocol()}

    answer_length: int = 1024
    protocol: str = "user"
    data: str = ""
    validation_share: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.validation_share < 1:
            raise UserError(f"task captioned: validation_share must be in [0, 1), not {self.validation_share}")

    def rows(self, split: str) -> Sequence[Row]:
        if split not in ("train", "validation"):
            raise self.no_split(split, ("train", "validation"))
        path = self._path()
        tars = self._tars()
        if tars:
            rows = [row for tar in tars for row in captioned_pictures(tar)]
        else:
            rows = _of_folder(path) if path.is_dir() else [_of_line(path, *line) for line in read_jsonl(path)]
        out = held_out([row["prompt"] for row in rows], self.validation_share)
        chosen = [row for row, held in zip(rows, out, strict=True) if held == (split == "validation")]
        if not chosen:
            raise UserError(f"task captioned: {path} has no rows for {split}; raise validation_share or add rows")
        return chosen

    def rewards(self) -> list[Weighted]:
        raise UserError("task captioned has no reward of its own; name one with --reward FILE.py:FUNCTION")

    @property
    def success(self) -> Reward:
        return Unjudged()

    def sources(self, split: str) -> dict[str, str]:
        del split
        path = self._path()
        files = self._tars() or ([] if path.is_dir() else [path])
        return {file.name: sha256_of(file) for file in files}

    def _tars(self) -> list[Path]:
        path = self._path()
        return sorted(path.glob("*.tar")) if path.is_dir() else [path] if ".tar" in path.suffixes else []

    def _path(self) -> Path:
        if not self.data:
            raise UserError("task captioned needs a JSONL file, a tar or a folder of pictures: name it with --data")
        return Path(self.data).expanduser()


def _of_line(file: Path, place: str, row: Row) -> Row:
    if not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise UserError(f"{place}: field 'prompt' must be the caption, a text")
    if "image" not in row:
        return {"id": place.rpartition(" ")[2], **row}
    if not isinstance(row["image"], str):
        raise UserError(f"{place}: field 'image' must be the name of a picture file")
    image = file.parent / row["image"]
    return {"id": place.rpartition(" ")[2], **row, "image": str(image), "completion": PictureFile(image)}


def _of_folder(folder: Path) -> list[Row]:
    rows = []
    for picture in sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES):
        text = picture.with_suffix(".txt")
        try:
            caption = text.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{text} is not there or no UTF-8 text: write the caption of {picture.name}") from error
        rows.append({"id": picture.stem, "prompt": caption, "image": str(picture), "completion": PictureFile(picture)})
    if not rows:
        raise UserError(f"{folder} has no pictures ({', '.join(SUFFIXES)}) and no .tar")
    return rows
