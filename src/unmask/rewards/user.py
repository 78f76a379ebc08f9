"""A user's own reward: a function in a Python file, with the signature that TRL gave to reward functions."""

import functools
import importlib.util
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from unmask.errors import RunError, UserError
from unmask.rewards.base import Reward, Row, Score
from unmask.rewards.text import END_TOKENS, cut


class UserRewardError(RunError):
    """A user's reward function failed while running, or returned something that is no reward."""


@dataclass(frozen=True)
class UserReward(Reward):
    """The function `function` of the Python file `path`: (completions, prompts=..., **columns) -> list[float | None].

    Completions are strings, cut before their first end token. Each column of the rows is handed over as a list (None
    where a row lacks it); a function without `**` gets only the columns that it names. None means not applicable to
    this row; nan and inf are infra errors, with a warning.

    Raises:
        UserError: file or function do not exist, or the file fails when it is imported.
        UserRewardError: on call: the function raised, or did not return one number or None per completion.
    """

    name: ClassVar[str] = "user"
    any_thread: ClassVar[bool] = False  # functions of users set alarms, keep state, or own a device

    path: str
    function: str
    end_tokens: tuple[str, ...] = END_TOKENS

    def __post_init__(self):
        _load(self.path, self.function)  # a missing file should fail before the model is loaded

    @property
    def label(self) -> str:
        return self.function

    def for_tokens(self, end: Sequence[str], mask: Sequence[str] = ()) -> Self:
        del mask
        return replace(self, end_tokens=tuple(dict.fromkeys((*self.end_tokens, *filter(None, end)))))

    def __call__(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        if not completions:
            return []
        texts = [cut(one, self.end_tokens) if isinstance(one, str) else one for one in completions]  # or pictures
        try:
            values = self._call(texts, rows)
        except Exception as error:
            row, error = self._culprit(texts, rows, error)
            raise UserRewardError(f"{self._where} failed{row}: {_said(error)}") from error
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(completions):
            got = f"{len(values)} values" if isinstance(values, Sequence) else type(values).__name__
            raise UserRewardError(f"{self._where} must return a list of {len(completions)} numbers or None, not {got}")
        scores = [self._score(value, i, row) for i, (value, row) in enumerate(zip(values, rows, strict=True))]
        if failed := sum(score.status == "infra_error" for score in scores):
            warnings.warn(
                f"{self._where} returned nan or inf for {failed} of {len(scores)} completions; they are left out",
                stacklevel=2,
            )
        return scores

    @property
    def _where(self) -> str:
        return f"reward function {self.function} in {self.path}"

    def _call(self, texts: list[str], rows: Sequence[Row]) -> Any:
        function = _load(self.path, self.function)
        names = dict.fromkeys(name for row in rows for name in row)
        arguments: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names if name != "prompt"}
        arguments |= {"prompts": [row.get("prompt") for row in rows], "completions": texts}
        parameters = inspect.signature(function).parameters.values()
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            known = {parameter.name for parameter in parameters}
            arguments = {name: value for name, value in arguments.items() if name in known | {"completions"}}
        if "completions" not in inspect.signature(function).parameters and any(
            parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for parameter in parameters
        ):
            return function(arguments.pop("completions"), **arguments)
        return function(**arguments)

    def _culprit(self, texts: list[str], rows: Sequence[Row], error: Exception) -> tuple[str, Exception]:
        """The first row on which the function fails by itself, and how; otherwise the error of the batch."""
        for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
            try:
                self._call([text], [row])
            except Exception as alone:
                return f" on row {row.get('id', i)}", alone
        return " on a batch, though on no row alone", error

    def _score(self, value: Any, i: int, row: Row) -> Score:
        if value is None:
            return Score.not_applicable()
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise UserRewardError(
                f"{self._where} returned {value!r} for row {row.get('id', i)}; a number or None was due"
            ) from error
        return Score.ok(number) if math.isfinite(number) else Score.infra_error(f"{self.function} returned {number}")


def from_file(path: str, name: str) -> Reward:
    """What a Python file calls `name`: a reward that is made there, with settings of its own, or a function.

    Raises:
        UserError: as `UserReward`.
    """
    found = getattr(_imported(path), name, None)
    return found if isinstance(found, Reward) else UserReward(path, name)


@functools.cache
def _load(path: str, function: str) -> Callable[..., Any]:
    module = _imported(path)
    found = getattr(module, function, None)
    if not callable(found) or inspect.isclass(found):
        names = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise UserError(f"{path} has no function {function!r}; it has {', '.join(names) or 'none'}")
    parameters = inspect.signature(found).parameters
    kinds = {parameter.kind for parameter in parameters.values()} - {inspect.Parameter.KEYWORD_ONLY}
    if "completions" not in parameters and not kinds:
        raise UserError(f"{path}: {function} takes no completions; write it as {function}(completions, **columns)")
    return found


def _imported(path: str) -> Any:
    return _module(str(Path(path).expanduser().resolve()))


@functools.cache
def _module(path: str) -> Any:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"reward file {path} does not exist; name it as FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"unmask_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"reward file {path} is not a Python file; name it as FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle inside the file look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UserError(f"reward file {path} cannot be imported: {_said(error)}") from error
    return module


def _said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
