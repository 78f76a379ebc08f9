"""Pictures as files, as text, and as parts of prompts: what is read from outside is checked before it is decoded."""

import base64
import binascii
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 4096 * 4096
"""Of a picture, at most."""
MOST_BYTES = 2**27
"""Of a picture file, at most."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Of picture files."""
_PREFIX = "data:image/png;base64,"


class StoredPicture(ABC):
    """A picture that is read when it is asked for; `str` names it in messages."""

    @abstractmethod
    def content(self) -> bytes:
        """The bytes of its file.

        Raises:
            UserError: they cannot be had.
        """

    def open(self) -> "Image":
        """The picture in RGB.

        Raises:
            UserError: as `content`; not one of `FORMATS`, broken, or with too many pixels.
        """
        return picture_in(self.content(), str(self))

    def extent(self) -> tuple[int, int]:
        """Width and height in pixels; raises as `open`."""
        try:
            return _header(self.content(), FORMATS).size
        except ValueError as error:
            raise _unreadable(str(self), error) from error


@dataclass(frozen=True)
class PictureFile(StoredPicture):
    """A picture in a file, or in a part of one (a tar).

    Args:
        path: of the file.
        start, size: where it is in the file, in bytes; a size of None is all of it.
        name: of the picture, for messages; default: the path.
    """

    path: Path
    start: int = 0
    size: int | None = None
    name: str = ""

    def content(self) -> bytes:
        try:
            size = self.path.stat().st_size if self.size is None else self.size
            if size > MOST_BYTES:
                raise UserError(f"picture {self} has {size} bytes, more than {MOST_BYTES}: make it smaller")
            with self.path.open("rb") as file:
                file.seek(self.start)
                content = file.read(size)
        except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
            raise UserError(f"picture {self} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if len(content) < size:
            raise UserError(f"picture {self} is cut off: {len(content)} of {size} bytes are there")
        return content

    def __str__(self) -> str:
        return self.name or str(self.path)


@dataclass(frozen=True)
class PictureText(StoredPicture):
    """A picture as `to_uri` writes it."""

    uri: str

    def content(self) -> bytes:
        try:
            return _uri_content(self.uri)
        except ValueError as error:
            raise UserError(f"{self} is no picture ({error}); write a PNG in base64") from error

    def __str__(self) -> str:
        return f"{self.uri[:40]}..."


def stored_picture(source: str) -> StoredPicture:
    """The picture that a prompt names: a file, or a `data:` URI with a PNG."""
    return PictureText(source) if source.startswith("data:") else PictureFile(Path(source).expanduser())


def open_picture(path: str | Path) -> "Image":
    """The picture in a file, in RGB; see `PictureFile.open`."""
    return PictureFile(Path(path).expanduser()).open()


def picture_in(content: bytes, name: str) -> "Image":
    """The picture in the bytes of a file, in RGB.

    Raises:
        UserError: not one of `FORMATS`, broken, or with too many pixels.
    """
    try:
        return decoded(content, FORMATS)
    except ValueError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: ValueError) -> UserError:
    return UserError(f"{name} is no picture that can be read ({error}); use {', '.join(FORMATS)}")


def with_pictures(prompt: Any, pictures: Sequence[str]) -> list[dict[str, Any]]:
    """A prompt with pictures in front of the text of its first user turn.

    Args:
        prompt: a text, or a list of {role, content}.
        pictures: files or `data:` URIs.

    Returns:
        A conversation whose `content` may be a list of parts, `{"type": "image", "image": FILE}` and `{"type": "text",
        "text": TEXT}`: plain data, so that records can keep it.
    """
    chat: list[dict[str, Any]]
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    turn = next((turn for turn in chat if turn.get("role") == "user"), None)
    if turn is None:
        raise UserError("a conversation with pictures needs a turn of the user")
    content = turn["content"]
    said = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    turn["content"] = [*({"type": "image", "image": picture} for picture in pictures), *said]
    return chat


def parted(prompt: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """A conversation with texts only, and its pictures in the order of their parts.

    Raises:
        UserError: a part that is neither a text nor a picture.
    """
    chat, pictures = [], []
    for turn in prompt:
        content = turn.get("content")
        if not isinstance(content, str):
            parts = [_part(part) for part in content] if isinstance(content, list | tuple) else [_part(content)]
            pictures += [value for kind, value in parts if kind == "image"]
            content = "".join(value for kind, value in parts if kind == "text")
        chat.append({**turn, "content": content})
    return chat, pictures


def _part(part: Any) -> tuple[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    value = part.get(kind) if isinstance(part, Mapping) and kind in ("text", "image") else None
    if not isinstance(value, str):
        raise UserError(
            f'a part of a prompt must be {{"type": "text", "text": TEXT}} or {{"type": "image", "image": FILE}}, '
            f"not {str(part)[:60]}"
        )
    return str(kind), value


def to_uri(picture: "Image") -> str:
    """A picture as a `data:` URI with a PNG: text that pages and JSON files can hold."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return _PREFIX + base64.b64encode(buffer.getvalue()).decode()


def from_uri(text: str) -> "Image":
    """The picture of `to_uri`, in RGB.

    Raises:
        ValueError: the text is none, or the picture is broken or too large.
    """
    return decoded(_uri_content(text), ("PNG",))


def is_uri(value: object) -> bool:
    """Whether this is text as `to_uri` writes it."""
    return isinstance(value, str) and value.startswith(_PREFIX)


def _uri_content(text: str) -> bytes:
    if not is_uri(text):
        raise ValueError("no picture")
    try:
        return base64.b64decode(text[len(_PREFIX) :], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def decoded(content: bytes, formats: tuple[str, ...]) -> "Image":
    """The picture in the bytes of a file, in RGB.

    Raises:
        ValueError: not one of these formats, broken, or too large.
    """
    try:
        return _header(content, formats).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(str(error)) from error


def _header(content: bytes, formats: tuple[str, ...]) -> "Image":
    """A picture that is not decoded yet."""
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(content), formats=formats)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError("unknown format" if isinstance(error, UnidentifiedImageError) else str(error)) from error
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
    return picture
