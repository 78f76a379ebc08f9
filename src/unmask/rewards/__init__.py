"""Rewards: what a completion is worth. `NAMES` are the ones that the command line knows."""

from collections.abc import Sequence

from unmask.errors import UserError
from unmask.rewards.base import Judged, PerItem, Reward, Row, Score, Weighted, combine
from unmask.rewards.code import Code
from unmask.rewards.images import Aesthetic, ClipScore, GenEvalObjects, HPScore, ImageRewardScore, PickScore
from unmask.rewards.math import Math
from unmask.rewards.options import split_options, with_options
from unmask.rewards.puzzles import AdditionWorked, CountdownSolved, ExactAnswer, SudokuSolved
from unmask.rewards.shapes import ShapesDrawn
from unmask.rewards.text import Boxed, Format, Integer, Number, TextReward
from unmask.rewards.user import UserReward, UserRewardError, from_file

__all__ = [
    "NAMES",
    "AdditionWorked",
    "Aesthetic",
    "Boxed",
    "ClipScore",
    "Code",
    "CountdownSolved",
    "ExactAnswer",
    "Format",
    "GenEvalObjects",
    "HPScore",
    "ImageRewardScore",
    "Integer",
    "Judged",
    "Math",
    "Number",
    "PerItem",
    "PickScore",
    "Reward",
    "Row",
    "Score",
    "ShapesDrawn",
    "SudokuSolved",
    "TextReward",
    "UserReward",
    "UserRewardError",
    "Weighted",
    "by_name",
    "combine",
]

NAMES: dict[str, type[Reward]] = {
    reward.name: reward
    for reward in (
        *(Number, Math, Format, Integer, Boxed, SudokuSolved, CountdownSolved, ExactAnswer, AdditionWorked, Code),
        *(ShapesDrawn, GenEvalObjects, ClipScore, PickScore, Aesthetic, HPScore, ImageRewardScore),
    )
}


def by_name(spec: str, own: Sequence[Reward] = ()) -> Reward:
    """The reward that NAME, remote:URL or judge:URL, each of them with (OPTION=VALUE, ...) or without, stands for.

    Or FILE.py:NAME, where NAME is a function, or a `Reward` that the file made.

    Args:
        own: a task's rewards. One of them that goes by the name is taken, since its options fit how the task is asked;
            options in `spec` change it.

    Raises:
        UserError: there is no such name, option, file or function, or the URL is none.
    """
    word, options = split_options(spec)
    if word in NAMES:
        fitting = (reward for reward in own if isinstance(reward, NAMES[word]))
        return with_options(next(fitting, None) or NAMES[word](), options, word)
    kind, colon, address = word.partition(":")
    if colon and kind in ("remote", "judge"):
        return with_options(_elsewhere(kind, address), options, kind)
    path, colon, name = spec.rpartition(":")
    if colon and name and path.endswith(".py"):
        return from_file(path, name)
    if spec.endswith(".py") or path.endswith(".py"):
        raise UserError(f"reward {spec!r} names no function; write it as FILE.py:FUNCTION")
    known = ", ".join(NAMES)
    raise UserError(f"there is no reward {spec!r}; choose one of {known}, FILE.py:FUNCTION, remote:URL or judge:URL")


def _elsewhere(kind: str, address: str) -> Reward:
    """A reward that is asked over HTTP, and needs more packages for that."""
    try:
        from unmask.rewards.judge import Judge
        from unmask.rewards.remote import Remote
    except ModuleNotFoundError as error:
        raise UserError(f"{kind} rewards need the package {error.name!r}: pip install 'unmask[remote]'") from error
    return Judge.at(address) if kind == "judge" else Remote.at(address)
