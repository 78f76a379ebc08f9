"""Tasks: rows, rewards and a metric. `NAMES` are the ones that the command line knows."""

from unmask.errors import UserError
from unmask.tasks.arithmetic import Arithmetic
from unmask.tasks.base import Row, Task, World
from unmask.tasks.captioned import Captioned
from unmask.tasks.code import MBPP, AceCode, HumanEval
from unmask.tasks.countdown import Countdown
from unmask.tasks.geneval import GenEval
from unmask.tasks.gsm8k import GSM8K
from unmask.tasks.math import Math500, MathTask
from unmask.tasks.programs import Programs
from unmask.tasks.prompt_sets import DPG, HPSv2Prompts, ImagePrompts, ImageRewardPrompts, PartiPrompts
from unmask.tasks.prompts import Prompts
from unmask.tasks.shapes import Shapes
from unmask.tasks.sudoku import Sudoku

__all__ = [
    "DPG",
    "GSM8K",
    "MBPP",
    "NAMES",
    "AceCode",
    "Arithmetic",
    "Captioned",
    "Countdown",
    "GenEval",
    "HPSv2Prompts",
    "HumanEval",
    "ImagePrompts",
    "ImageRewardPrompts",
    "Math500",
    "MathTask",
    "PartiPrompts",
    "Programs",
    "Prompts",
    "Row",
    "Shapes",
    "Sudoku",
    "Task",
    "World",
    "by_name",
]

NAMES: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Sudoku,
        Countdown,
        Arithmetic,
        Programs,
        Shapes,
        Captioned,
        *(ImagePrompts, GenEval, DPG, HPSv2Prompts, ImageRewardPrompts, PartiPrompts),
        GSM8K,
        MathTask,
        Math500,
        Prompts,
        MBPP,
        HumanEval,
        AceCode,
    )
}


def by_name(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        UserError: there is none of that name.
    """
    if name not in NAMES:
        raise UserError(f"there is no task {name!r}; choose one of {', '.join(NAMES)}")
    return NAMES[name]
