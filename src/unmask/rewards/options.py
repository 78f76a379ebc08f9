"""Rewards with options, written in one word: NAME(OPTION=VALUE, ...)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields

from unmask.errors import UserError
from unmask.rewards.base import Reward

_CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)


def with_options(spec: str, names: Mapping[str, type[Reward]]) -> Reward | None:
    """The reward with these options, e.g. `clip(model=/models/clip, batch=8)`; None: the word is no such thing.

    Options are the fields of the reward that are texts or numbers. Values hold no comma.

    Raises:
        UserError: no reward of that name has such an option, or the value is none for it.
    """
    call = _CALL.fullmatch(spec.strip())
    if call is None or call[1] not in names:
        return None
    kind = names[call[1]]
    types: dict[type, Callable[[str], str | float]] = {str: str, int: int, float: float}
    known = {one.name: types[type(one.default)] for one in fields(kind) if type(one.default) in types}
    options: dict[str, str | float] = {}
    for part in filter(None, map(str.strip, call[2].split(","))):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if option not in known or not equals:
            there = ", ".join(known) or "none"
            raise UserError(f"reward {call[1]}: {part!r} is no OPTION=VALUE with one of its options: {there}")
        try:
            options[option] = known[option](value)
        except ValueError as error:
            raise UserError(f"reward {call[1]}: option {option} must be a number, not {value!r}") from error
    return kind(**options)
