"""Pictures from strangers: their size is read from the header by hand before any decoder sees them."""

import base64
import binascii
import struct
from typing import TYPE_CHECKING

from unmask.pictures import MOST_PIXELS, decoded
from unmask.rewards.protocol import EncodedPicture, Picture

if TYPE_CHECKING:
    from PIL.Image import Image


def content_of(picture: EncodedPicture) -> bytes:
    """The bytes of the file.

    Raises:
        ValueError: not base64.
    """
    try:
        return base64.b64decode(picture.b64, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def pixels_of(content: bytes, form: Picture) -> int:
    """Pixels of a picture by its header.

    Raises:
        ValueError: the header is not one of this format, or there are more than `MOST_PIXELS`.
    """
    width, height = _png_size(content) if form == "png" else _webp_size(content)
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are not possible")
    return width * height


def picture_of(content: bytes, form: Picture) -> "Image":
    """The picture in RGB, after `pixels_of` has looked at it.

    Raises:
        ValueError: it is broken.
    """
    return decoded(content, (form.upper(),))


def _png_size(content: bytes) -> tuple[int, int]:
    if len(content) < 24 or content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR":
        raise ValueError("not a PNG")
    return struct.unpack(">II", content[16:24])


def _webp_size(content: bytes) -> tuple[int, int]:
    """From the first chunk: extended, lossless or lossy (WebP container specification, RFC 9649)."""
    if len(content) < 30 or content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise ValueError("not a WebP")
    kind = content[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L" and content[20] == 0x2F:
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", content[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("not a WebP")
