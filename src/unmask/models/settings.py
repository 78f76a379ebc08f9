"""Values of a `config.json`, checked as they are read."""

from collections.abc import Mapping
from typing import Any

from unmask.errors import UserError

MOST = 2**24
"""Largest size in a configuration: above every model, and low enough for sizes of tensors not to overflow."""
MOST_LAYERS = 1000
"""Layers of a model, at most: they are made one by one before anything is compared with the weights."""


class Settings:
    """A parsed JSON object whose values are checked as they are read.

    Args:
        values: the object.
        where: the file, for error messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def get(self, key: str) -> Any:
        """The value of a key that must be there."""
        if key not in self.values:
            raise UserError(f"{self.where}: key {key!r} is missing; take it from the checkpoint's original config.json")
        return self.values[key]

    def error(self, key: str, wanted: str) -> UserError:
        """The error for a value that cannot be used."""
        return UserError(f"{self.where}: {key} is {repr(self.values.get(key))[:60]}, but must be {wanted}")

    def integer(self, key: str, most: int = MOST) -> int:
        """A positive integer, at most `most`."""
        value = self.get(key)
        if type(value) is not int or not 1 <= value <= most:
            raise self.error(key, f"a positive integer up to {most}")
        return value

    def integer_or(self, key: str, default: int) -> int:
        """A positive integer; null means `default`."""
        return default if self.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """A positive number."""
        value = self.get(key)
        if type(value) not in (int, float) or not 0 < value < 1e300:
            raise self.error(key, "a positive number")
        return float(value)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of positive integers, at least one."""
        value = self.get(key)
        if not isinstance(value, list) or not value or any(type(one) is not int or one < 1 for one in value):
            raise self.error(key, "a list of positive integers")
        return tuple(value)

    def optional_integer(self, key: str) -> int | None:
        """A non-negative integer; null or missing means None."""
        value = self.values.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise self.error(key, "a non-negative integer or null")
        return value

    def boolean(self, key: str) -> bool:
        """true or false."""
        value = self.get(key)
        if type(value) is not bool:
            raise self.error(key, "true or false")
        return value

    def choice(self, key: str, *supported: str) -> str:
        """One of the supported texts."""
        self.require(key, *supported)
        return self.values[key]

    def require(self, key: str, *supported: Any) -> None:
        """Refuses every value but the supported ones."""
        value = self.get(key)
        if not any(value == one and type(value) is type(one) for one in supported):
            raise self.error(key, " or ".join(map(as_json, supported)) + ": nothing else is supported")

    def require_if_given(self, key: str, *supported: Any) -> None:
        """The same for a key that may be missing: then it has the first supported value."""
        if key in self.values:
            self.require(key, *supported)


def as_json(value: Any) -> str:
    """A scalar as the user wrote it."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or type(value) is bool else repr(value)
