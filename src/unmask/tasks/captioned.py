"""A user's own pictures with captions: a folder, a JSONL file, or tars."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from unmask.errors import UserError
from unmask.pictures import PictureFile
from unmask.tasks.base import Row
from unmask.tasks.files import read_jsonl
from unmask.tasks.own import OwnRows
from unmask.tasks.protocols import Usual
from unmask.tasks.tars import SUFFIXES, captioned_pictures


@dataclass(frozen=True)
class Captioned(OwnRows):
    """Captions, and pictures to learn from.

    From a JSONL file: rows with `prompt` and, for supervised fine-tuning, `image`: a picture file, relative to the
    JSONL. Other columns are handed to the rewards. From a folder: every picture with a text file of the same name, its
    caption. From tars (WebDataset), one file or a folder of them: see `captioned_pictures`. Pictures are opened when
    they are needed, scaled and cut to the model's size.

    Args:
        answer_length: codes of a picture: those of the model's size.
        data: the JSONL file, the folder or the tar.
        validation_share: of the rows, held out.
    """

    name: ClassVar[str] = "captioned"
    answers: ClassVar[Literal["text", "image"]] = "image"
    needed: ClassVar[str] = "a JSONL file, a tar or a folder of pictures: name it with --data"

    answer_length: int = Usual(1024)

    def read(self, path: Path) -> list[Row]:
        if tars := _tars(path):
            return [row for tar in tars for row in captioned_pictures(tar)]
        return _of_folder(path) if path.is_dir() else [_of_line(path, *line) for line in read_jsonl(path)]

    def files(self, path: Path) -> list[Path]:
        return _tars(path) or ([] if path.is_dir() else [path])

    def key(self, row: Row) -> str:
        return row["prompt"]


def _tars(path: Path) -> list[Path]:
    return sorted(path.glob("*.tar")) if path.is_dir() else [path] if ".tar" in path.suffixes else []


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
