"""Rewards: what a completion is worth. `NAMES` are the ones that the command line knows."""

from unmask.errors import UserError
from unmask.rewards.base import Judged, PerItem, Reward, Row, Score, Weighted, combine
from unmask.rewards.code import Code
from unmask.rewards.puzzles import AdditionWorked, CountdownSolved, ExactAnswer, SudokuSolved
from unmask.rewards.shapes import ShapesDrawn
from unmask.rewards.text import Boxed, Format, Integer, Number, TextReward
from unmask.rewards.user import UserReward, UserRewardError

__all__ = [
    "NAMES",
    "AdditionWorked",
    "Boxed",
    "Code",
    "CountdownSolved",
    "ExactAnswer",
    "Format",
    "Integer",
    "Judged",
    "Number",
    "PerItem",
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
        *(Number, Format, Integer, Boxed, SudokuSolved, CountdownSolved, ExactAnswer, AdditionWorked, Code),
        ShapesDrawn,
    )
}


def by_name(spec: str) -> Reward:
    """The reward that NAME, FILE.py:FUNCTION or remote:URL stands for, with its defaults.

    Raises:
        UserError: there is no such name, file or function, or the URL is none.
    """
    if spec in NAMES:
        return NAMES[spec]()
    if spec.startswith("remote:"):
        return _remote(spec.removeprefix("remote:"))
    path, colon, function = spec.rpartition(":")
    if colon and function and path.endswith(".py"):
        return UserReward(path, function)
    if spec.endswith(".py") or path.endswith(".py"):
        raise UserError(f"reward {spec!r} names no function; write it as FILE.py:FUNCTION")
    raise UserError(f"there is no reward {spec!r}; choose one of {', '.join(NAMES)} or FILE.py:FUNCTION")


def _remote(address: str) -> Reward:
    try:
        from unmask.rewards.remote import Remote
    except ModuleNotFoundError as error:
        raise UserError(f"remote rewards need the package {error.name!r}: pip install 'unmask[remote]'") from error
    return Remote.at(address)
