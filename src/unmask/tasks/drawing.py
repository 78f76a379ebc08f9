"""Pictures of coloured shapes: 32 x 32 pixels, 2 x 2 cells, an object fills one."""

import functools
import random

import numpy as np
from PIL import Image

from unmask.rewards.detector import coverage
from unmask.rewards.shapes import BACKGROUND, COLOURS
from unmask.tasks.shapes import Caption

_CELLS, _SIDE = 2, 16
_SIZES = {"circle": 6.9, "square": 6.2, "triangle": 7.2}  # half extents, in pixels


def picture(caption: Caption, rng: random.Random) -> Image.Image:
    """A picture of what the caption says; what it leaves open is drawn by `rng`."""
    canvas = np.empty((_CELLS * _SIDE, _CELLS * _SIDE, 3))
    canvas[:] = BACKGROUND
    wanted = [(shape, colour) for shape, colour, count in caption.include for _ in range(count)]
    for (shape, colour), (column, row) in zip(wanted, _places(len(wanted), caption.relation, rng), strict=True):
        cell = canvas[row * _SIDE : (row + 1) * _SIDE, column * _SIDE : (column + 1) * _SIDE]
        cover = _sprite(shape)[..., None]
        cell[:] = cell * (1 - cover) + np.array(COLOURS[colour or rng.choice(list(COLOURS))]) * cover
    return Image.fromarray(canvas.round().astype(np.uint8))


@functools.cache
def _sprite(shape: str) -> np.ndarray:
    """Coverage of a shape in the middle of a cell."""
    size = _SIZES[shape]
    down = _SIDE / 2 + (size / 3 if shape == "triangle" else 0)  # a triangle's centroid is below its middle
    return coverage(shape, _SIDE / 2, down, size, _SIDE, _SIDE)


def _places(count: int, relation: str | None, rng: random.Random) -> list[tuple[int, int]]:
    """(column, row) of different cells; of two in a relation, cells of one row or one column."""
    cells = [(column, row) for row in range(_CELLS) for column in range(_CELLS)]
    while True:
        places = rng.sample(cells, count)
        if relation is None or _beside(relation, places[0], places[1]):
            return places


def _beside(relation: str, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the cells stand in the relation along one axis and are equal along the other: no borderline cases."""
    right, down = first[0] - second[0], first[1] - second[1]
    along = {"left of": -right, "right of": right, "above": -down, "below": down}[relation]
    return along > 0 and not (right and down)
