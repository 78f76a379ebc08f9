"""A detector of coloured shapes in pictures, without any learned weights."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from unmask.rewards.shapes import BACKGROUND, COLOURS, SHAPES, Seen

if TYPE_CHECKING:
    from PIL.Image import Image

_PALETTE, _GROUND = np.array(list(COLOURS.values()), float), np.array(BACKGROUND, float)
_SAMPLES = 5  # per pixel and axis, for soft coverage
_MOST_OBJECTS = 8  # with more objects nothing is told apart: captions name four at most
_SPECK, _LEAST_AREA, _MOST_AREA = 0.003, 0.020, 0.30  # of the picture; specks are not seen
_LEAST_FIT, _LEAST_MARGIN = 0.80, 0.02  # soft IoU of the best shape, and its lead over the second best
_FARTHEST_COLOUR, _LEAST_PURITY, _VISIBLE = 60.0, 0.7, 70.0  # RGB distances; share of an object's core


def detect(picture: "Image") -> list[Seen]:
    """The objects in a picture.

    Foreground is what differs from the background; its connected parts are objects, but for specks. Colour: the
    nearest of the palette at the part's core. Shape: the soft coverage (how far each pixel is from the background
    towards that colour) is compared with that of each ideal shape of the same centre and area, by soft IoU.
    """
    image = np.asarray(picture.convert("RGB"), float)
    size = image.shape[0] * image.shape[1]
    parts = _parts(np.linalg.norm(image - _GROUND, axis=-1) > _VISIBLE)
    numbers = [number for number, area in _areas(parts) if area >= _SPECK * size]
    if len(numbers) > _MOST_OBJECTS:
        return [Seen("unknown", "unknown", 0.5, 0.5)] * len(numbers)
    return [_object(image, parts, number) for number in numbers]


def _areas(parts: np.ndarray) -> list[tuple[int, int]]:
    numbers, counts = np.unique(parts[parts > 0], return_counts=True)
    return list(zip(numbers.tolist(), counts.tolist(), strict=True))


def _parts(foreground: np.ndarray) -> np.ndarray:
    """Connected parts (four neighbours): each pixel gets the largest number that reaches it; 0 is background."""
    number = np.where(foreground, np.arange(1, foreground.size + 1).reshape(foreground.shape), 0)
    while True:
        spread = _neighbours(number).max(0) * foreground
        if (spread == number).all():
            return number
        number = spread


def _neighbours(a: np.ndarray) -> np.ndarray:
    """Every pixel with its four neighbours (zeros outside): [5 height width]."""
    wide = np.pad(a, 1)
    return np.stack([a, wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]])


def _object(image: np.ndarray, parts: np.ndarray, number: int) -> Seen:
    inside = parts == number
    ys, xs = np.nonzero(inside)
    height, width = inside.shape
    x, y = (xs.mean() + 0.5) / width, (ys.mean() + 0.5) / height
    core = _neighbours(inside).all(0)
    core = core if core.sum() >= 4 else inside
    distance = np.linalg.norm(image[core][:, None] - _PALETTE, axis=-1)
    votes = np.bincount(distance.argmin(1), minlength=len(_PALETTE)) / core.sum()
    colour = int(votes.argmax())
    if votes[colour] < _LEAST_PURITY or np.median(distance[:, colour]) > _FARTHEST_COLOUR:
        return Seen("unknown", "unknown", x, y)
    name = list(COLOURS)[colour]
    sides = np.ptp(ys) + 1, np.ptp(xs) + 1
    share = inside.mean()
    if not _LEAST_AREA <= share <= _MOST_AREA or max(sides) > 1.6 * min(sides):
        return Seen("unknown", name, x, y)
    top, left = max(ys.min() - 2, 0), max(xs.min() - 2, 0)
    window = np.s_[top : ys.max() + 3, left : xs.max() + 3]
    ray = _PALETTE[colour] - _GROUND
    cover = ((image[window] - _GROUND) @ ray / (ray @ ray)).clip(0, 1)
    others = (parts[window] > 0) & ~inside[window]
    rim = np.stack([_neighbours(one).any(0) for one in _neighbours(inside[window])]).any(0)
    cover = np.where(rim & ~others & (cover >= 0.04), cover, 0)
    area, (rows, columns) = cover.sum(), np.indices(cover.shape) + 0.5
    cx, cy = (columns * cover).sum() / area, (rows * cover).sum() / area
    fits = sorted(((_fit(cover, shape, cx, cy), shape) for shape in SHAPES), reverse=True)
    (best, shape), (second, _) = fits[:2]
    sure = best >= _LEAST_FIT and best - second >= _LEAST_MARGIN
    return Seen(shape if sure else "unknown", name, (cx + left) / width, (cy + top) / height)


def _fit(cover: np.ndarray, shape: str, cx: float, cy: float) -> float:
    """Soft IoU of a coverage with that of the ideal shape of the same centre and area."""
    area = cover.sum()
    ideal = coverage(shape, cx, cy, size_of(shape, area), *cover.shape)
    both = np.minimum(cover, ideal).sum()
    return float(both / (area + ideal.sum() - both))


def size_of(shape: str, area: float) -> float:
    """Half the extent of a shape of this area: radius, or half a side."""
    return float(np.sqrt(area / {"circle": np.pi, "square": 4.0, "triangle": 2.0}[shape]))


def coverage(shape: str, cx: float, cy: float, size: float, height: int, width: int) -> np.ndarray:
    """Share of each pixel that a shape covers, [height width].

    Args:
        cx, cy: its centroid, in pixels.
        size: half its extent; triangles are as high as wide, and point upwards.
    """
    xs, ys = _grid(height, width)
    xs, ys = xs - cx, ys - cy
    if shape == "circle":
        inside = xs**2 + ys**2 <= size**2
    elif shape == "square":
        inside = (abs(xs) <= size) & (abs(ys) <= size)
    else:
        below = ys + size * 4 / 3  # the apex; the centroid is two thirds of the height under it
        inside = (below >= 0) & (below <= 2 * size) & (abs(xs) <= below / 2)
    return inside.reshape(height, _SAMPLES, width, _SAMPLES).mean((1, 3))


@lru_cache(maxsize=256)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    along = (np.arange(max(height, width) * _SAMPLES) + 0.5) / _SAMPLES
    return along[None, : width * _SAMPLES], along[: height * _SAMPLES, None]
