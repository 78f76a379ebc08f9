"""From YAML and command-line words to config objects: presets, overrides, and errors in one line.

Settings are read in this order, later ones win: defaults of the dataclasses, run preset or file (`--config`), method
preset (`--method`), the other options of the command line.
"""

import argparse
import importlib.resources
import inspect
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from unmask import advantages, objectives, samplers, schedules, tasks, views  # the members that YAML can name
from unmask.errors import UserError
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
    short = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    short.add_argument("--config", action="append", default=[])
    short.add_argument("--data")
    if kind is TrainConfig:
        short.add_argument("--method")
        short.add_argument("--reward", nargs="+")
    known: Any
    known, rest = guarded(short.parse_known_args, list(words))
    files = [preset("runs", name) for name in known.config]
    for file in files:
        check_yaml(file)
    if getattr(known, "method", None):
        method = preset("methods", known.method)
        check_yaml(method)
        with tempfile.TemporaryDirectory() as folder:
            files = [_without_method(file, Path(folder) / f"{n}.yaml") for n, file in enumerate(files)]
            return _build(parser, kind, [*files, method], rest, known)
    return _build(parser, kind, files, rest, known)


def _without_method(file: Path, copy: Path) -> Path:
    """A run file without what a method preset decides: options of one method must not leak into another."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    decided = ("method", "likelihood", "objective", "advantage")
    copy.write_text(yaml.safe_dump({name: value for name, value in content.items() if name not in decided}))
    return copy


def _build(parser: ArgumentParser, kind: type[RunConfig], files: Sequence[Path], rest: list[str], known: Any) -> Any:
    expanded = [word for file in files for word in ("--config", str(file))] + rest
    if getattr(known, "reward", None):
        expanded += ["--rewards", yaml.safe_dump(list(known.reward), default_flow_style=True)]
    try:
        namespace: Any = guarded(parser.parse_args, expanded)
    except UserError as error:
        if "required" in str(error) and not files:
            raise UserError(f"{error}; start from a preset with --config (`unmask presets` lists them)") from error
        raise
    if known.data is not None:
        has_data = "data" in inspect.signature(_class_of(namespace.task.class_path)).parameters
        words_for = [] if has_data else ["--task", "Prompts"]
        namespace = guarded(parser.parse_args, [*expanded, *words_for, "--task.data", known.data])
    objects = guarded(parser.instantiate, namespace)
    fields = {name: value for name, value in vars(objects).items() if name != "config"}
    return kind(**fields)


def parse_object(kind: type, value: Any, name: str) -> Any:
    """A component from plain data, e.g. a sampler from `{"class_path": ..., "init_args": ...}`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind)
    return getattr(guarded(parser.instantiate, guarded(parser.parse_object, {name: value})), name)


def check_yaml(path: Path) -> None:
    """Raises UserError where a file is no YAML mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, not {type(content).__name__}")


def _class_of(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def guarded(call, *arguments):
    """Calls a parser; whatever it does not like becomes one line."""
    try:
        return call(*arguments)
    except UserError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError, OSError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise UserError(one_line(str(error))) from error


def one_line(message: str) -> str:
    """A parser's message without its line breaks and module paths."""
    text = re.sub(r"\s+", " ", message).strip()
    text = re.sub(r"unmask\.(?:\w+\.)+(\w+)", r"\1", text)
    return re.sub(r"Parser key \"([^\"]+)\":", r"\1:", text)


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
