"""Pictures with captions in tar files, as WebDataset has them: read in place, never extracted."""

import tarfile
from collections.abc import Collection
from pathlib import Path

from unmask.errors import UserError
from unmask.pictures import PictureFile
from unmask.tasks.base import Row

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""Of pictures."""
_LONGEST_CAPTION = 2**16  # bytes


def captioned_pictures(path: Path) -> list[Row]:
    """Rows (`id`, `prompt`, `completion`: a `PictureFile`) of an uncompressed tar, in its order.

    Members whose names are the same up to the first dot of the last part belong together: a picture and its caption,
    `.txt`. Other members are passed over. Names are compared and nothing else is done with them; links and devices are
    refused; pictures stay where they are and are read when they are asked for.

    Raises:
        UserError: a file that is no tar, is compressed or broken; a picture without a caption, or the other way round.
    """
    pictures: dict[str, PictureFile] = {}
    captions: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise UserError(f"{path}: {member.name!r:.80} is a link, a device or sparse: only files are read")
                key, suffix = _split(member.name)
                if suffix in SUFFIXES:
                    _new(path, key, pictures)
                    place = f"{path}, {member.name!r:.80}"
                    pictures[key] = PictureFile(path, member.offset_data, member.size, place)
                elif suffix == ".txt":
                    _new(path, key, captions)
                    captions[key] = _caption(path, tar, member)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as an uncompressed tar: {reason}") from error
    for key in pictures.keys() ^ captions.keys():
        missing = "caption (.txt)" if key in pictures else f"picture ({', '.join(SUFFIXES)})"
        raise UserError(f"{path}: {key!r:.80} has no {missing}")
    return [
        {"id": f"{path.name}/{key}", "prompt": captions[key], "completion": picture}
        for key, picture in pictures.items()
    ]


def _split(name: str) -> tuple[str, str]:
    """The key of a member, and its suffix from the first dot of the last part on."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{suffix}".lower()


def _new(path: Path, key: str, known: Collection[str]) -> None:
    if key in known:
        raise UserError(f"{path}: {key!r:.80} has two pictures or two captions")


def _caption(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    if member.size > _LONGEST_CAPTION:
        raise UserError(
            f"{path}: the caption {member.name!r:.80} has {member.size} bytes, more than {_LONGEST_CAPTION}"
        )
    file = tar.extractfile(member)
    content = b"" if file is None else file.read()
    try:
        caption = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the caption {member.name!r:.80} is no UTF-8 text") from error
    if not caption:
        raise UserError(f"{path}: the caption {member.name!r:.80} is empty")
    return caption
