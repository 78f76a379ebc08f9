"""What rewards by a frozen network have in common: pictures in, batches through, scores out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unmask.errors import UserError
from unmask.pictures import from_uri, is_uri
from unmask.rewards.base import Reward, Row, Score

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class PictureReward(Reward, ABC):
    """A reward that shows pictures to frozen networks.

    Networks are loaded at the first use, or when a run reads the reward with `for_tokens`: one copy per process and
    settings, shared by all rewards that use it, and used by one thread at a time. What is no picture is invalid. What
    the network cannot score (out of memory, a number that is none) is an infra error.

    Args:
        device: auto (this process's GPU, if there is one), cpu, cuda or cuda:N.
        dtype: of the weights and of what is computed with them.
        batch: pictures per forward.

    Raises:
        UserError: settings that cannot be; on first use: a network is not there, or a row has no text `prompt`.
    """

    any_thread: ClassVar[bool] = False  # the current GPU is a property of the thread

    device: str = "auto"
    dtype: str = "float32"
    batch: int = 32

    def __post_init__(self):
        if self.batch < 1:
            raise UserError(f"reward {self.name}: batch must be at least 1, not {self.batch}")
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise UserError(f"reward {self.name}: dtype must be float32, float16 or bfloat16, not {self.dtype}")

    @abstractmethod
    def load(self) -> Any:
        """The networks, from memory or disk."""

    @abstractmethod
    def judge(self, pictures: "Sequence[Image]", rows: Sequence[Row]) -> list[Score]:
        """One score per picture."""

    def for_tokens(self, end: Sequence[str], mask: Sequence[str] = ()) -> Reward:
        """The same reward: it reads no text. A run asks for this at its start: networks that miss are told now."""
        del end, mask
        self.load()
        return self

    def __call__(self, completions: Sequence[Any], rows: Sequence[Row]) -> list[Score]:
        import torch

        seen = [_picture(completion) for completion in completions]
        places = [i for i, one in enumerate(seen) if not isinstance(one, Score)]
        if not places:
            return [one for one in seen if isinstance(one, Score)]
        self.load()
        try:
            with torch.inference_mode():
                judged = self.judge([seen[i] for i in places], [rows[i] for i in places])
        except torch.OutOfMemoryError:
            judged = [Score.infra_error(f"{self.name}: out of memory with batch {self.batch}; lower it")] * len(places)
        for i, score in zip(places, judged, strict=True):
            seen[i] = score
        return seen

    def prompts(self, rows: Sequence[Row]) -> list[str]:
        """The texts that the pictures were asked for by."""
        for row in rows:
            if not isinstance(row.get("prompt"), str):
                raise UserError(f"reward {self.name}: row {row.get('id', '?')} needs a text in column 'prompt'")
        return [row["prompt"] for row in rows]

    def scores(self, values: Sequence[float]) -> list[Score]:
        """Finite values as they are."""
        return [
            Score.ok(value) if math.isfinite(value) else Score.infra_error(f"{self.name} gave {value}")
            for value in values
        ]


def _picture(completion: Any) -> Any:
    """A PIL picture, or the score of what is none."""
    if is_uri(completion):
        try:
            return from_uri(completion)
        except ValueError as error:
            return Score.invalid(f"not a picture: {error}")
    return Score.invalid("not a picture") if isinstance(completion, str) else completion
