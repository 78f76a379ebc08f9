"""GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513): whether detected objects are those of a prompt.

Rows have `tag`; `include`, a list of {class, count, optional color, optional position: [relation, index of an earlier
item]}; and optionally `exclude`, a list of {class, count}.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CLASSES = tuple(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
    laptop, computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator,
    book, clock, vase, scissors, teddy bear, hair drier, toothbrush
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)
"""The 80 classes of COCO, in its order, as GenEval calls them."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9
MOST_OBJECTS = 16
"""Per class, the most confident ones."""
_SHRINK = 0.1  # of the sum of two extents: so far two centres may differ along an axis and count as level
_HOLDS = 0.5  # share of the distance that must lie along the axis of a relation


@dataclass(frozen=True, eq=False)
class Detection:
    """An object in a picture.

    Args:
        name: one of `CLASSES`.
        confidence: in [0, 1].
        box: left, top, right, bottom in pixels.
        mask: array of [height width], true on the object; None where nobody asks for colours.
    """

    name: str
    confidence: float
    box: tuple[float, float, float, float]
    mask: Any = None


ColoursOf = Callable[[str, Sequence[Detection]], Sequence[str]]
"""From a class and some of its objects to their colours."""


def counted(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The objects that count for prompts with this tag: class -> objects, the most confident ones first."""
    least = COUNTING_CONFIDENCE if tag == "counting" else CONFIDENCE
    found: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=lambda one: -one.confidence):
        if one.confidence > least and len(found.get(one.name, ())) < MOST_OBJECTS:
            found.setdefault(one.name, []).append(one)
    return found


def relations(first: Detection, second: Detection) -> set[str]:
    """Where the first object is, seen from the second; diagonal neighbours may stand in two relations."""
    offsets, clear = [], []
    for low in (0, 1):
        a, b = (one.box[low : low + 3 : 2] for one in (first, second))
        offset = (a[0] + a[1] - b[0] - b[1]) / 2
        extents = abs(a[1] - a[0]) + abs(b[1] - b[0])
        offsets.append(offset)
        clear.append(math.copysign(max(abs(offset) - _SHRINK * extents, 0.0), offset))
    if max(map(abs, clear)) < 1e-3:
        return set()
    right, down = (one / math.hypot(*offsets) for one in clear)
    holding = {"left of": -right, "right of": right, "above": -down, "below": down}
    return {name for name, share in holding.items() if share > _HOLDS}


def mistakes(row: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]], colours_of: ColoursOf) -> list[str]:
    """What of the row is not as it should be; nothing: the picture is right.

    An `include` item needs at least its count of objects. Colours and positions are looked at in the most confident
    ones of that count only, and position needs everything else to be right. `exclude` counts all objects.

    Args:
        row: see the module.
        objects: of `counted`.
        colours_of: is asked only where a colour matters.
    """
    wrong: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for item in row["include"]:
        name, count = item["class"], item["count"]
        found = objects.get(name, ())[:count]
        before = len(wrong)
        if len(found) < count:
            wrong.append(f"{len(found)} of {count} {name}")
        elif "color" in item:
            seen = colours_of(name, found)
            if seen.count(item["color"]) < count:
                wrong.append(f"{name} is {', '.join(seen)} instead of {item['color']}")
        if "position" in item and len(wrong) == before:
            relation, target = item["position"]
            others = matched[target]
            if others is None:
                wrong.append(f"nothing for {name} to be {relation}")
            elif any(relation not in relations(one, other) for one in found for other in others):
                wrong.append(f"{name} is not {relation} {row['include'][target]['class']}")
        matched.append(found if len(wrong) == before else None)
    for item in row.get("exclude", ()):
        if (there := len(objects.get(item["class"], ()))) >= item["count"]:
            wrong.append(f"{there} {item['class']}, more than {item['count'] - 1}")
    return wrong
