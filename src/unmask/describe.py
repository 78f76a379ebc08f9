"""Config objects as plain data, in the form that YAML has too."""

import dataclasses
import inspect
import typing
from typing import Any


def describe(component: Any) -> dict[str, Any]:
    """`{"class_path": ..., "init_args": ...}` of a frozen dataclass that stands for an abstract idea."""
    kind = type(component)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": plain(component)}


def plain(component: Any) -> dict[str, Any]:
    """The fields of a frozen dataclass; those that are declared abstract say their class."""
    values = {}
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        if dataclasses.is_dataclass(value):
            declared = (field.type, *typing.get_args(field.type))
            value = describe(value) if any(map(inspect.isabstract, declared)) else plain(value)
        if isinstance(value, tuple):
            value = [plain(item) if dataclasses.is_dataclass(item) else item for item in value]
        if type(value) is not bool and isinstance(value, int):
            value = int(value)  # of a kind of its own too: YAML knows none
        values[field.name] = value
    return values
