"""Rewards with options, written in one word: NAME(OPTION=VALUE, ...)."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from types import UnionType
from typing import Any, TypeVar, get_args

from unmask.errors import UserError
from unmask.rewards.base import Reward

R = TypeVar("R", bound=Reward)

_CALL = re.compile(r"([^()]+)\((.*)\)", re.DOTALL)


def split_options(spec: str) -> tuple[str, str]:
    """A word without its options, and these; empty where there are none."""
    call = _CALL.fullmatch(spec.strip())
    return (call[1], call[2]) if call else (spec, "")


def with_options(reward: R, options: str, called: str) -> R:
    """The reward with some of its options changed, e.g. by `model=/models/clip, batch=8`.

    Options are those fields of the reward that have a default and are texts, numbers, true or false; OPTION.OPTION is
    an option of a part, such as `patience.total`. Values hold no comma.

    Args:
        called: what messages call the reward.

    Raises:
        UserError: the reward has no such option, or the value is none for it.
    """
    known, changes = _readers(reward), {}
    for part in filter(None, map(str.strip, options.split(","))):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if option not in known or not equals:
            there = ", ".join(known) or "none"
            raise UserError(f"reward {called}: {part!r} is no OPTION=VALUE with one of its options: {there}")
        read, what = known[option]
        try:
            changes[option] = read(value)
        except ValueError as error:
            raise UserError(f"reward {called}: option {option} must be {what}, not {value!r}") from error
    return _changed(reward, changes) if changes else reward


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


_Reader = tuple[Callable[[str], Any], str]
_READERS: dict[Any, _Reader] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: (_finite, "a number"),
    bool: (_truth, "true or false"),
}


def _readers(thing: Any) -> dict[str, _Reader]:
    """Per option how it is read, and what it must be."""
    found: dict[str, _Reader] = {}
    for one in fields(thing):
        value = getattr(thing, one.name)
        kinds = set(get_args(one.type)) - {type(None)} if isinstance(one.type, UnionType) else {one.type}
        kind = kinds.pop() if len(kinds) == 1 else None
        if one.default is MISSING and one.default_factory is MISSING:
            continue  # said by the rest of the word
        if kind in _READERS:
            found[one.name] = _READERS[kind]
        elif is_dataclass(value):
            found |= {f"{one.name}.{option}": reader for option, reader in _readers(value).items()}
    return found


def _changed(thing: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with options of itself and of its parts changed, each in one go: they may be checked together."""
    values: dict[str, Any] = {}
    for name in dict.fromkeys(option.partition(".")[0] for option in changes):
        inner = {option.partition(".")[2]: value for option, value in changes.items() if option.startswith(f"{name}.")}
        values[name] = _changed(getattr(thing, name), inner) if inner else changes[name]
    return replace(thing, **values)
