"""From pictures to the numbers that networks expect, with PIL and numpy only."""

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Per channel, of pixels in [0, 1]; BLIP uses the same."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LONGEST = 16  # short sides; what lies further out is cut off before a strip is scaled to a picture of no sane size


def square(picture: "Image", size: int, fit: Literal["crop", "pad"] = "crop") -> np.ndarray:
    """A picture as a square for CLIP and BLIP, float32 of [3 size size].

    Args:
        picture: in any mode.
        size: side in pixels.
        fit: crop scales the short side to `size` (bicubic) and keeps the middle; pad scales the long side to `size` and
            puts black around it.
    """
    from PIL import Image

    picture = picture.convert("RGB")
    if fit == "crop":
        picture = _middle(picture, picture.width, picture.height)
        width, height = picture.size
        short = min(width, height)
        scaled = picture.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
        scaled = _cut(scaled, size, size)
    else:
        long = max(picture.size)
        shape = max(1, round(size * picture.width / long)), max(1, round(size * picture.height / long))
        scaled = Image.new("RGB", (size, size))
        scaled.paste(picture.resize(shape, Image.Resampling.BICUBIC), ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return normalised(scaled, CLIP_MEAN, CLIP_STD)


def stretched(picture: "Image", short: int, long: int, multiple: int) -> np.ndarray:
    """A whole picture for a detector, float32 of [3 height width], both multiples of `multiple`.

    The short side becomes `short`, or less where the long one would exceed `long` (bilinear); the sides are then
    rounded up, as transformers' processor of Mask2Former does it.
    """
    from PIL import Image

    width, height = picture.size
    low, high = min(width, height), max(width, height)
    if high / low * short > long:
        raw = long * low / high
        short = round(raw)
        other = int(raw * high / low)
    else:
        other = int(short * high / low)
    shape = (short, other) if width <= height else (other, short)
    rounded = -(-shape[0] // multiple) * multiple, -(-shape[1] // multiple) * multiple
    return normalised(picture.convert("RGB").resize(rounded, Image.Resampling.BILINEAR), IMAGENET_MEAN, IMAGENET_STD)


def normalised(picture: "Image", mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Channels first; (pixel / 255 - mean) / std."""
    pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)
    return ((pixels - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


def _middle(picture: "Image", width: int, height: int) -> "Image":
    """A strip without its far ends; other pictures as they are."""
    most = _LONGEST * min(width, height)
    return _cut(picture, min(width, most), min(height, most)) if max(width, height) > most else picture


def _cut(picture: "Image", width: int, height: int) -> "Image":
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
