"""What jsonargparse says about a wrong setting, in one line that names the option and what it may be.

Its complaints are nested, indented texts: `Parser key "a":`, `Problem with given class_path 'B':`, one item per member
of a union, and at the bottom what is wrong. They are walked from the top, beside the type hints of the config classes.
"""

import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

_KEY = re.compile(r"Parser key \"([^\"]+)\":\s*(.*)")
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*(.*)")
_EXPECTED = re.compile(r"Expected a (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*)\])(?:\. Got value:\s*(.*))?")
_NOT_A_CLASS = re.compile(
    r"Expected a dot import path string:\s*(.*)"
    r"|Import path (\S*) does not .*"
    r"|Expected an instantiatable class, but (\S*) is .*"
)
_NOT_A_MAPPING = re.compile(
    r"Unable to load config [\"'](.*)[\"']|Not a valid subclass of \w+\.? ?(?:Got value: (.*))?"
)
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list [a, b]",
}
_WORDS |= {"list": "a list [a, b]", "dict": "a mapping", "NoneType": "null"}

SHORTHANDS = ("config", "data", "method", "reward", "resume", "debug")
"""Options that stand for several settings, or for none."""

Hints = Mapping[str, Any]


def short(value: Any, most: int = 60) -> str:
    """A value that a user gave, cut to `most` characters."""
    text = " ".join(("null" if value is None else str(value)).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _shown(value: str) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(value) or repr(short(value))


def close(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, list(known), 1)), None)


def members(kind: type) -> list[str]:
    """Names of the classes that can stand where `kind` is declared."""
    found, waiting = set(), [kind]
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if not inspect.isabstract(one) and not one.__name__.startswith("_") and one.__module__.startswith("unmask."):
            found.add(one.__name__)
    return sorted(found)


def explain(message: str, hints: Hints) -> str:
    """One line for a complaint of jsonargparse or argparse.

    Args:
        hints: option -> type, of everything that could be given.
    """
    if match := re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.DOTALL):
        return _unknown_option(match[1], hints)
    if match := re.fullmatch(r"argument (\S+): expected (?:one|at least one) argument", message):
        return f"{match[1]} needs a value"
    if match := re.search(r"(?:Key|key) '?\"?([\w.-]+)'?\"? is required|arguments are required: (.*)", message):
        names = [name.removeprefix("--") for name in (match[1] or match[2]).split(", ")]
        shown = [f"--{name}" if name in hints else name.upper() for name in names]
        return f"{', '.join(shown)} {'is' if len(shown) == 1 else 'are'} required"
    return _walk(message.splitlines(), hints)


def _unknown_option(word: str, hints: Hints) -> str:
    if not word.startswith("-"):
        return f"unexpected {short(word)!r}: values follow their option, as in --steps 10"
    near = close(word.lstrip("-").partition("=")[0], [*_options(hints), *SHORTHANDS])
    return f"unknown option {short(word)}; " + (f"did you mean --{near}?" if near else "--help lists the options")


def _options(hints: Hints, prefix: str = "") -> Iterable[str]:
    for name, kind in hints.items():
        yield prefix + name
        for one in _parts(kind):
            if dataclasses.is_dataclass(one) and not inspect.isabstract(one):
                yield from _options(hints_of(one), f"{prefix}{name}.")


def _walk(lines: list[str], hints: Hints) -> str:
    path: list[str] = []
    kind: Any = None
    owner = ""
    given = next((line.split("Given value: ", 1)[1] for line in lines if "Given value: " in line), None)
    if given and (nested := re.fullmatch(r"NestedArg\(key='.*', val=(.*)\)", given)):
        given = nested[1].strip("'")
    for position, raw in enumerate(lines):
        line = raw.strip().removeprefix("- ")
        if match := re.match(r"Group '(.*)' does not", line):
            path, kind = match[1].split("."), hints.get(match[1])
            hints = hints_of(kind)
        if match := _KEY.fullmatch(line):
            if not path or path[-1] != match[1]:  # what cannot be loaded is said twice
                for name in match[1].split("."):
                    path, kind = [*path, name], hints.get(name)
                    hints = hints_of(kind)
            line = match[2]
        if match := _CLASS.fullmatch(line):
            owner, line = match[1], match[2]
            rest = " ".join(lines[position + 1 : position + 2]).strip()
            if _loaded(owner) is None or rest.startswith("module "):
                return _at(path, _unknown_class(owner, kind))
            hints = hints_of(_loaded(owner))
        if not line or line.startswith(("Does not validate", "Subtypes:", "Errors:")):
            continue
        return _at(path, _leaf(line, kind, owner.rpartition(".")[2], hints, given))
    return _at(path, "cannot be read")


def _leaf(line: str, kind: Any, owner: str, hints: Hints, given: str | None) -> str:
    if match := re.fullmatch(r"Option '([^']+)' is not accepted.*|Group '.*' does not accept option '(.*)'", line):
        return _unknown_key(match[1] or match[2], owner, hints)
    if match := _NOT_A_CLASS.fullmatch(line):
        return _unknown_class(next((group for group in match.groups() if group), ""), kind)
    if match := _EXPECTED.fullmatch(line):
        value = match[3] if match[3] is not None else given
        wanted = "one of " + match[2].replace("'", "") if match[2] else _WORDS.get(match[1], match[1])
        return f"must be {wanted}" + ("" if value is None else f", not {_shown(value)}")
    if match := re.fullmatch(r"Expected a tuple with (\d+) elements\. Got value:\s*(.*)", line):
        return f"must be a list of {match[1]} values, not {short(match[2])}"
    if match := _NOT_A_MAPPING.fullmatch(line):
        return _mapping(next((group for group in match.groups() if group), given or ""), kind)
    if line.endswith("object has no attribute 'keys'"):
        return f"init_args of {owner} must be a mapping of {', '.join(hints)}"
    if line.startswith("unhashable type"):
        return f"class_path must be a text; known: {_known(kind)}"
    if "recursion" in line:
        return "is nested too deeply"
    if line.startswith("Exceeds the limit"):
        return "is a number with too many digits"
    return short(re.sub(r"unmask\.(?:\w+\.)+(\w+)", r"\1", line), 200)


def _unknown_key(name: str, owner: str, hints: Hints) -> str:
    if len(hints) < 20:
        return f"{owner} has no option {short(name)!r}; it has {', '.join(hints) or 'none'}".strip()
    name = name.partition(".")[0]
    near = close(name, hints)
    return f"unknown key {short(name)!r}; " + (f"did you mean {near}?" if near else "--help lists the settings")


def _mapping(value: str, kind: Any) -> str:
    concrete = _concrete(kind)
    if concrete is not None:
        return f"must be a mapping of its options ({', '.join(hints_of(concrete))}), not {_shown(value)}"
    return f"must be a class or {{class_path, init_args}}, not {_shown(value)}; known: {_known(kind)}"


def _unknown_class(name: str, kind: Any) -> str:
    concrete = _concrete(kind)
    if concrete is not None and len(members(concrete)) == 1:
        return _mapping(name, kind)
    return f"unknown class {short(name)!r}; known: {_known(kind)}"


def _concrete(kind: Any) -> type | None:
    """The config class that stands for itself, e.g. LoRA; None where a class must be chosen."""
    return next((one for one in _classes(kind) if dataclasses.is_dataclass(one) and not inspect.isabstract(one)), None)


def _known(kind: Any) -> str:
    return ", ".join(name for one in _classes(kind) for name in members(one)) or "none"


def _classes(kind: Any) -> list[type]:
    return [one for one in _parts(kind) if inspect.isclass(one)]


def _parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union but None; of anything else, itself."""
    return tuple(one for one in typing.get_args(kind) or (kind,) if one is not type(None))


def hints_of(kind: Any) -> Hints:
    """Field -> type of a dataclass, or of the one in `X | None`; empty for anything else."""
    for one in _parts(kind):
        if dataclasses.is_dataclass(one):
            hints = typing.get_type_hints(one)
            return {field.name: hints[field.name] for field in dataclasses.fields(one)}
    return {}


def _loaded(path: str) -> Any:
    """The class that jsonargparse imported under this name; None: there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _at(path: list[str], text: str) -> str:
    return f"{'.'.join(path)}: {text}" if path else text
