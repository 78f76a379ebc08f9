"""Pictures as files and as text: what is read from outside is checked before it is decoded."""

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 4096 * 4096
"""Of a picture, at most."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Of picture files."""
_PREFIX = "data:image/png;base64,"


def open_picture(path: str | Path) -> "Image":
    """The picture in a file, in RGB.

    Raises:
        UserError: no such file, not one of `FORMATS`, broken, or too large.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"picture {path} cannot be read: {error.strerror or error}") from error
    try:
        return decoded(content, FORMATS)
    except ValueError as error:
        raise UserError(f"{path} is no picture that can be read ({error}); use {', '.join(FORMATS)}") from error


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
    if not is_uri(text):
        raise ValueError("no picture")
    try:
        content = base64.b64decode(text[len(_PREFIX) :], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    return decoded(content, ("PNG",))


def is_uri(value: object) -> bool:
    """Whether this is text as `to_uri` writes it."""
    return isinstance(value, str) and value.startswith(_PREFIX)


def decoded(content: bytes, formats: tuple[str, ...]) -> "Image":
    """The picture in the bytes of a file, in RGB.

    Raises:
        ValueError: not one of these formats, broken, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(content), formats=formats)
        if picture.width * picture.height > MOST_PIXELS:  # known from the header, before anything is decoded
            raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
        return picture.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError("unknown format" if isinstance(error, UnidentifiedImageError) else str(error)) from error
