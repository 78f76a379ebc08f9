"""Prompts in the manner of GenEval's that are not among its 553: what to train on."""

import functools
import hashlib
import importlib.resources
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from unmask.rewards.images.geneval_rules import CLASSES, COLOURS, RELATIONS
from unmask.tasks.base import stable_share

TRAINED = ("two_object", "counting", "colors", "position", "color_attr")
"""Categories with prompts to train on: all 80 of `single_object` are test prompts."""

VALIDATION_SHARE = 0.2
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_TEST = "geneval_test.txt"


def make(tag: str, split: str, rng: random.Random) -> dict[str, Any]:
    """A row of a category: tag, include, exclude where objects are counted, prompt.

    No row of GenEval's test set says the same, in whatever order it names its objects; nor does a row of another split.

    Args:
        tag: one of `TRAINED`.
        split: train or validation.
        rng: decides.
    """
    while True:
        row = {"tag": tag, **_MAKERS[tag](rng)}
        key = key_of(row)
        if (stable_share(key) < VALIDATION_SHARE) == (split == "validation") and digest(
            key
        ) not in digests_of_test_prompts():
            return row


def key_of(row: Mapping[str, Any]) -> str:
    """What a row asks for, as text: equal for rows that ask for the same."""
    items = [[item["class"], item["count"], item.get("color")] for item in row["include"]]
    placed = next((item for item in row["include"] if "position" in item), None)
    if placed is None:
        return json.dumps([row["tag"], sorted(items, key=str)])
    relation, target = placed["position"]
    pair = [row["include"][target]["class"], relation, placed["class"]]
    mirrored = [placed["class"], _OPPOSITE.get(relation, relation), row["include"][target]["class"]]
    return json.dumps([row["tag"], min(pair, mirrored)])


def digest(key: str) -> str:
    """Of a key, as the file of test prompts has them."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@functools.cache
def digests_of_test_prompts() -> frozenset[str]:
    """Of GenEval's 553 test prompts."""
    return frozenset(importlib.resources.files("unmask.tasks").joinpath(_TEST).read_text(encoding="ascii").split())


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _two_object(rng: random.Random) -> dict[str, Any]:
    first, second = rng.sample(CLASSES, 2)
    include = [{"class": first, "count": 1}, {"class": second, "count": 1}]
    return {"include": include, "prompt": f"a photo of {_a(first)} and {_a(second)}"}


def _counting(rng: random.Random) -> dict[str, Any]:
    name, count = rng.choice(CLASSES), rng.choice(list(_NUMBERS))
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    return {
        "include": [{"class": name, "count": count}],
        "exclude": [{"class": name, "count": count + 1}],
        "prompt": f"a photo of {_NUMBERS[count]} {plural}",
    }


def _colors(rng: random.Random) -> dict[str, Any]:
    (name,), colour = _things(rng, 1), rng.choice(COLOURS)
    return {
        "include": [{"class": name, "count": 1, "color": colour}],
        "prompt": f"a photo of {_a(colour)} {name}",
    }


def _position(rng: random.Random) -> dict[str, Any]:
    first, second = rng.sample(CLASSES, 2)
    relation = rng.choice(RELATIONS)
    return {
        "include": [{"class": second, "count": 1}, {"class": first, "count": 1, "position": [relation, 0]}],
        "prompt": f"a photo of {_a(first)} {relation} {_a(second)}",
    }


def _color_attr(rng: random.Random) -> dict[str, Any]:
    pairs = list(zip(_things(rng, 2), rng.sample(COLOURS, 2), strict=True))
    named = " and ".join(f"{_a(colour)} {name}" for name, colour in pairs)
    return {
        "include": [{"class": name, "count": 1, "color": colour} for name, colour in pairs],
        "prompt": f"a photo of {named}",
    }


def _things(rng: random.Random, count: int) -> list[str]:
    """Classes that have a colour: nobody is asked for a person of one."""
    return rng.sample([name for name in CLASSES if name != "person"], count)


_MAKERS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
