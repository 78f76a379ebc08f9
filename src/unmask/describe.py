"""Config objects as plain data, in the form that YAML has too."""

import dataclasses
from typing import Any


def describe(component: Any) -> dict[str, Any]:
    """`{"class_path": ..., "init_args": ...}` of a frozen dataclass and of those inside it."""
    values = {}
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        values[field.name] = describe(value) if dataclasses.is_dataclass(value) else value
    kind = type(component)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": values}
