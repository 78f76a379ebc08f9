"""From YAML and command-line words to config objects: presets, overrides, and errors in one line.

Settings are read in this order, later ones win: defaults of the dataclasses, run preset or file (`--config`), method
preset (`--method`), the other options of the command line.
"""

import argparse
import importlib.resources
import inspect
import math
import tempfile
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from unmask import advantages, objectives, samplers, schedules, tasks, views  # the members that YAML can name
from unmask.errors import UserError
from unmask.messages import Hints, explain, hints_of, short
from unmask.rl import TrainConfig
from unmask.run import RunConfig
from unmask.supervised import SFTConfig

assert all((advantages, objectives, samplers, schedules, tasks, views))
set_parsing_settings(docstring_parse_attribute_docstrings=False)

PRESETS = importlib.resources.files("unmask") / "presets"


def preset_names(kind: str) -> list[str]:
    """Names of the presets of a kind: `runs` or `methods`."""
    return sorted(Path(item.name).stem for item in (PRESETS / kind).iterdir() if item.name.endswith(".yaml"))


def preset(kind: str, name: str) -> Path:
    """The file of a preset, or of the user's own YAML.

    Raises:
        UserError: there is none of that name.
    """
    if name in preset_names(kind):
        return Path(str(PRESETS / kind / f"{name}.yaml"))
    path = Path(name)
    if path.is_file():
        return path
    option = "--config" if kind == "runs" else "--method"
    raise UserError(f"{option} {name}: neither a file nor a preset; presets are {', '.join(preset_names(kind))}")


def parser_of(kind: type[RunConfig], command: str, description: str) -> ArgumentParser:
    """The option parser of a config class; options are its fields, dotted."""
    parser = ArgumentParser(prog=f"unmask {command}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="run preset (unmask presets) or YAML file")
    parser.add_class_arguments(kind)
    return parser


def parse(kind: type[RunConfig], command: str, words: Sequence[str], description: str = "") -> Any:
    """The config object that these words describe.

    Shorthands: `--method NAME`, `--data FILE`, `--reward NAME ...`.
    """
    parser = parser_of(kind, command, description)
    if "--help" in words or "-h" in words:
        print(_help(parser, kind))
        raise SystemExit(0)
    for place, word in enumerate(words):
        if word.endswith(".help"):
            following = [one for one in words[place + 1 : place + 2] if not one.startswith("-")]
            parsed(parser, typing.get_type_hints(kind), [word, *following])
    shorthand = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    shorthand.add_argument("--config", action="append", default=[])
    shorthand.add_argument("--data")
    if kind is TrainConfig:
        shorthand.add_argument("--method")
        shorthand.add_argument("--reward", nargs="+")
    known: Any
    known, rest = _one_line(shorthand.parse_known_args, list(words), typing.get_type_hints(kind))
    given = {name: preset("runs", name) for name in known.config}
    if getattr(known, "method", None):
        given |= {known.method: preset("methods", known.method)}
    for name, file in given.items():
        _check_file(name, file, kind)
    files = [given[name] for name in known.config]
    if getattr(known, "method", None):
        with tempfile.TemporaryDirectory() as folder:
            files = [_without_method(file, Path(folder) / f"{n}.yaml") for n, file in enumerate(files)]
            return _build(parser, kind, [*files, given[known.method]], rest, known)
    return _build(parser, kind, files, rest, known)


def _check_file(name: str, file: Path, kind: type[RunConfig]) -> None:
    """Parses a file by itself, so that a message can name it."""
    content = read_yaml(file)
    if "config" in content:
        raise UserError(f"{name}: key 'config' is not for files: give several with --config A --config B")
    parser = parser_of(kind, "", "")
    try:
        _one_line(lambda it: parser.parse_object(it, _skip_required=True), content, typing.get_type_hints(kind))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _without_method(file: Path, copy: Path) -> Path:
    """A run file without what a method preset decides: options of one method must not leak into another."""
    content = read_yaml(file)
    decided = ("method", "likelihood", "objective", "advantage")
    copy.write_text(yaml.safe_dump({name: value for name, value in content.items() if name not in decided}))
    return copy


def _build(parser: ArgumentParser, kind: type[RunConfig], files: Sequence[Path], rest: list[str], known: Any) -> Any:
    hints = typing.get_type_hints(kind)
    expanded = [word for file in files for word in ("--config", str(file))] + rest
    if getattr(known, "reward", None):
        expanded += ["--rewards", yaml.safe_dump(list(known.reward), default_flow_style=True)]
    try:
        namespace = parsed(parser, hints, expanded)
    except UserError as error:
        if str(error).endswith("required") and not files:
            raise UserError(f"{error}; start from a preset with --config (`unmask presets` lists them)") from error
        raise
    if known.data is not None:
        has_data = "data" in inspect.signature(_class_of(namespace.task.class_path)).parameters
        words_for = [] if has_data else ["--task", "Prompts"]
        namespace = parsed(parser, hints, [*expanded, *words_for, "--task.data", known.data])
    fields = {name: value for name, value in vars(instantiate(parser, namespace)).items() if name != "config"}
    config = kind(**fields)
    config.sampler.layout(config.task.answer_length)  # refuses blocks that do not fit, before anything is written
    return config


def parse_object(kind: type, value: Any, name: str) -> Any:
    """A component from plain data, e.g. a sampler from `{"class_path": ..., "init_args": ...}`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind)
    namespace = _one_line(parser.parse_object, {name: value}, {name: kind})
    _check_values(namespace[name], kind, name)
    return getattr(instantiate(parser, namespace), name)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: it is none.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise UserError(f"{path}{line}: not valid YAML: {short(error.problem, 160)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {short(error, 160)}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} must hold `key: value` lines, not {short(content)!r}")
    return content


def parsed(parser: ArgumentParser, hints: Hints, words: Sequence[str]) -> Namespace:
    """The options of a command line; what is wrong with them becomes one line. `hints`: option -> type."""
    namespace = _one_line(parser.parse_args, list(words), hints)
    for name, kind in hints.items():
        options = hints_of(kind) if inspect.isclass(kind) and not inspect.isabstract(kind) else {}
        if options and not isinstance(namespace.get(name), Namespace):
            raise UserError(f"{name}: must be a mapping of its options ({', '.join(options)})")
        _check_values(namespace.get(name), kind, name)
    return namespace


def instantiate(parser: ArgumentParser, namespace: Namespace) -> Namespace:
    """The components that were parsed.

    Raises:
        UserError: one of them refuses its options.
    """
    try:
        return parser.instantiate(namespace)
    except ValueError as error:  # of a union all members were tried; ours said why not
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from error
            cause = cause.__cause__ or cause.__context__
        raise


def _check_values(value: Any, kind: Any, name: str = "") -> None:
    """Raises UserError for what no option means and jsonargparse lets pass.

    That is: null where it is not declared (a file may say it), nan and infinity, whole numbers past 64 bits, a NUL.

    Args:
        kind: the declared type; None if it is not known.
    """
    if value is None and kind is not None and type(None) not in typing.get_args(kind):
        raise UserError(f"{name}: must not be null")
    if isinstance(value, Namespace) and "class_path" in value:
        _check_values(value.get("init_args"), _class_of(value.class_path) | None, name)
    elif isinstance(value, Namespace | dict):
        hints = hints_of(kind)
        for key, item in vars(value).items() if isinstance(value, Namespace) else value.items():
            _check_values(item, hints.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            _check_values(item, None, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: must be a finite number, not {value}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{name}: is too large for a whole number of 64 bits")
    elif isinstance(value, str) and "\0" in value:
        raise UserError(f"{name}: holds a NUL character")


def _class_of(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _one_line(call: Callable[..., Any], given: Any, hints: Hints) -> Any:
    """Calls a parser, which runs none of our code but imports; whatever it does not like becomes one line."""
    try:
        return call(given)
    except (argparse.ArgumentError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(explain(str(error), hints)) from error


def _help(parser: ArgumentParser, kind: type) -> str:
    command, name = ("train", "demo-sudoku") if kind is TrainConfig else ("sft", "sudoku-sft")
    shorthand = f"{parser.description}\n\nexample: unmask {command} --config {name} --out runs/first\n\n"
    shorthand += "shorthands:\n  --config NAME|FILE   run preset (unmask presets) or YAML file\n"
    shorthand += "  --data FILE          the task's data, or prompts of your own (JSONL with a `prompt` column)\n"
    if kind is TrainConfig:
        shorthand += "  --method NAME        method preset: likelihood, objective, advantage\n"
        shorthand += "  --reward NAME|FILE.py:FUNCTION ...   what to maximise instead of the task's own rewards\n"
    shorthand += "  --resume             go on with the run in --out, if there is one\n"
    return shorthand + "\n" + parser.format_help()


__all__ = ["SFTConfig", "TrainConfig", "parse", "preset", "preset_names"]
