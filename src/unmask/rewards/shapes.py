"""Whether a picture shows the coloured shapes that its caption names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

from unmask.pictures import from_uri, is_uri
from unmask.rewards.base import PerItem, Score

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 80, 200),
    "yellow": (240, 200, 20),
    "purple": (150, 60, 190),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")
BACKGROUND = (236, 236, 236)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""The relations between two objects, each with its mirror image."""

_LARGEST_SIDE = 256
_LEAST_OFFSET = 0.1  # of the picture, between the centres of two objects in a relation


@dataclass(frozen=True)
class Seen:
    """An object in a picture; shape or colour are `unknown` where the detector is not sure.

    Args:
        x, y: centre in [0, 1], from the left and from the top.
    """

    shape: str
    colour: str
    x: float
    y: float

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class ShapesDrawn(PerItem):
    """1 if the picture shows exactly what the caption names, else 0.

    A row has `include`: a list of {shape, colour (or null), count}; and `relation`: null, or where the first object is
    seen from the second (`left of`, `right of`, `above`, `below`). Right means: exactly these objects in exactly these
    numbers, nothing else in the picture, and the centres in that relation, along the axis that they differ most in.
    """

    name: ClassVar[str] = "shapes"

    def judge(self, completion: Any, row: Mapping[str, Any]) -> Score:
        from unmask.rewards.detector import detect

        try:
            picture = from_uri(completion) if is_uri(completion) else completion
        except ValueError as error:
            return Score.invalid(f"not a picture: {error}")
        if isinstance(picture, str) or max(picture.size) > _LARGEST_SIDE or min(picture.size) < 8:
            return Score.invalid("not a picture of 8 to 256 pixels")
        seen = detect(picture)
        return Score.ok(float(agrees(seen, row)), answer=", ".join(sorted(map(str, seen))) or "nothing")


def agrees(seen: Sequence[Seen], row: Mapping[str, Any]) -> bool:
    """Whether the objects are those of the caption, see `ShapesDrawn`."""
    wanted = [(one["shape"], one["colour"]) for one in row["include"] for _ in range(one["count"])]
    if len(seen) != len(wanted):
        return False
    return any(
        all(s.shape == shape and colour in (None, s.colour) for s, (shape, colour) in zip(order, wanted, strict=True))
        and (row["relation"] is None or _holds(row["relation"], order[0], order[1]))
        for order in permutations(seen)
    )


def _holds(relation: str, first: Seen, second: Seen) -> bool:
    right, down = first.x - second.x, first.y - second.y
    along = {"left of": -right, "right of": right, "above": -down, "below": down}[relation]
    across = abs(down) if relation in ("left of", "right of") else abs(right)
    return along > _LEAST_OFFSET and along > across
