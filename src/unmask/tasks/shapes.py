"""Coloured shapes: captions of GenEval's six categories (arXiv 2310.11513), drawn and judged without any model."""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import Any, ClassVar, Literal

from unmask.errors import UserError
from unmask.rewards.base import Reward, Weighted
from unmask.rewards.shapes import COLOURS, OPPOSITE, SHAPES, ShapesDrawn
from unmask.tasks.base import Row, World, by_split
from unmask.tasks.protocols import Usual

CATEGORIES = ("single_object", "colors", "two_object", "counting", "color_attr", "position")
"""From the easiest to the hardest."""
_TURNED = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}
_NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Caption:
    """What a caption names.

    Args:
        include: (shape, colour or None, count) of one or two kinds of objects.
        relation: where the first is seen from the second; None says nothing.
    """

    category: str
    include: tuple[tuple[str, str | None, int], ...]
    relation: str | None = None

    @property
    def text(self) -> str:
        named = [
            " ".join(filter(None, (_NUMBERS[count], colour, shape + "s" * (count > 1))))
            for shape, colour, count in self.include
        ]
        return f" {self.relation or 'and'} ".join(named)

    @property
    def combination(self) -> str:
        """The same for captions that say the same in another order."""
        turned = None if self.relation is None else OPPOSITE[self.relation]
        return min(self.text, replace(self, include=self.include[::-1], relation=turned).text)

    def careless(self) -> "Caption":
        """What one draws who does not look closely: the typical mistake of each category, never right.

        The next shape or colour in the list; the first shape or colour for both; one too few; above for left of and
        below for right of, or the other way round.
        """
        (shape, colour, count), *rest = self.include
        if self.category == "single_object":
            include = ((SHAPES[(SHAPES.index(shape) + 1) % len(SHAPES)], colour, 1),)
        elif self.category == "colors":
            names = list(COLOURS)
            include = ((shape, names[(names.index(colour or "") + 1) % len(names)], 1),)
        elif self.category == "counting":
            include = ((shape, colour, count - 1),)
        elif self.category == "position":
            return replace(self, relation=_TURNED[self.relation or ""])
        elif self.category == "two_object":
            include = (self.include[0], (shape, rest[0][1], 1))
        else:
            include = (self.include[0], (rest[0][0], colour, 1))
        return replace(self, include=include)


@dataclass(frozen=True)
class Shapes(World):
    """Draw what a caption says: `a red circle left of a blue square` -> a picture of 32 x 32 pixels.

    Captions name one to four objects (3 shapes, 6 colours) in GenEval's six categories, equally often. Objects fill
    cells of 16 x 16 pixels; where the caption leaves something open it is drawn at random.
    Splits are by combination, whatever the order of its words; it is also the `cluster`. Validation and test have
    equally many items of each category, and repeat captions where a category has fewer: each item is a draw of its own.
    `category` names the category.

    A careless demonstration makes the typical mistake of its category (`Caption.careless`), and is more likely in
    harder categories (`careless_at_fewest`, `careless_at_most`).

    Args:
        categories: of training rows, each equally often; one that is named twice comes twice as often. Validation and
            test have all six.
    """

    name: ClassVar[str] = "shapes"
    answers: ClassVar[Literal["text", "image"]] = "image"
    alphabet: ClassVar[Sequence[str]] = (
        *_NUMBERS.values(),
        *COLOURS,
        *(shape + plural for shape in SHAPES for plural in ("", "s")),
        *("and", "left", "right", "of", "above", "below"),
    )
    image_tokenizer: ClassVar[Path | None] = Path(__file__).with_name("shapes_codebook")

    answer_length: int = Usual(64)
    validation_items: int = 240
    test_items: int = 480
    categories: tuple[str, ...] = CATEGORIES

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.categories if name not in CATEGORIES]
        if unknown or not self.categories:
            given = repr(unknown[0]) if unknown else "none"
            raise UserError(f"task shapes: categories are some of {', '.join(CATEGORIES)}, not {given}")

    def make(self, split: str, rng: random.Random) -> Row:
        category = rng.choice(self.categories)
        caption = rng.choice(captions()[split, category])
        careless = self.is_careless(split, CATEGORIES.index(category) / (len(CATEGORIES) - 1), rng)
        drawn = caption.careless() if careless else caption
        from unmask.tasks.drawing import picture

        return _row(caption) | {"completion": picture(drawn, rng)}

    def rows(self, split: str) -> Sequence[Row]:
        if split not in ("validation", "test"):
            return super().rows(split)
        wanted = self.validation_items if split == "validation" else self.test_items
        every = {}
        for category in CATEGORIES:
            every[category] = list(captions()[split, category])
            random.Random(f"{self.name}/{split}").shuffle(every[category])
        places = [(category, turn) for turn in range(-(-wanted // len(CATEGORIES))) for category in CATEGORIES]
        chosen = [every[category][turn % len(every[category])] for category, turn in places[:wanted]]
        return [{"id": f"{self.name}-{split}-{j}", **_row(caption)} for j, caption in enumerate(chosen)]

    def rewards(self) -> list[Weighted]:
        return [Weighted(ShapesDrawn())]

    @property
    def success(self) -> Reward:
        return ShapesDrawn()

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        del ground_truth
        known = {caption.text: caption for members in captions().values() for caption in members}
        if question not in known:
            raise ValueError("the question is no caption of this world")
        return _row(known[question])


def _row(caption: Caption) -> Row:
    include = [{"shape": shape, "colour": colour, "count": count} for shape, colour, count in caption.include]
    return {
        "prompt": caption.text,
        "category": caption.category,
        "include": include,
        "relation": caption.relation,
        "cluster": caption.combination,
    }


@functools.cache
def captions() -> dict[tuple[str, str], tuple[Caption, ...]]:
    """The captions of each (split, category)."""
    found: dict[tuple[str, str], tuple[Caption, ...]] = {}
    for category in CATEGORIES:
        every = [caption for caption in _captions() if caption.category == category]
        parts = by_split(sorted({caption.combination for caption in every}))
        if not parts["validation"]:
            parts["validation"], parts["train"] = parts["train"][:1], parts["train"][1:]
        for split, members in parts.items():
            found[split, category] = tuple(caption for caption in every if caption.combination in members)
    return found


def _captions() -> list[Caption]:
    any_colour = (None, *COLOURS)
    every = [Caption("single_object", ((shape, None, 1),)) for shape in SHAPES]
    every += [Caption("colors", ((shape, colour, 1),)) for shape, colour in product(SHAPES, COLOURS)]
    every += [Caption("counting", ((s, c, n),)) for s, c, n in product(SHAPES, any_colour, (2, 3, 4))]
    for (a, b), (x, y) in product(permutations(SHAPES, 2), product(any_colour, repeat=2)):
        if not (x and y):
            every.append(Caption("two_object", ((a, x, 1), (b, y, 1))))
        if bool(x) == bool(y) and (x is None or x != y):
            every += [Caption("position", ((a, x, 1), (b, y, 1)), relation) for relation in OPPOSITE]
    for (a, b), (x, y) in product(product(SHAPES, repeat=2), permutations(COLOURS, 2)):
        every.append(Caption("color_attr", ((a, x, 1), (b, y, 1))))
    return every
