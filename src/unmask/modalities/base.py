"""The contract of a modality."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Bool, Int
from torch import Tensor

from unmask.types import Canvas

Prompt = str | Sequence[Mapping[str, Any]]
"""A user's text, or a conversation of `{"role", "content"}`; content is a text or a list of parts, pictures among them.

See `unmask.pictures.with_pictures`.
"""


Completion = Any
"""What rewards see of an answer: a text, or a picture (`PIL.Image.Image`)."""


class Modality(ABC):
    """Encodes prompts, decodes answers, and says which slots of an answer count."""

    greedy: ClassVar[bool] = True  # a single answer is drawn at temperature 0

    vocab: tuple[int, int]  # rows [start, stop) of the head that answers are made of
    banned: Bool[Tensor, "k"]  # local ids that can never be an answer

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt], slots: int) -> Canvas:
        """One row per prompt, with `slots` empty answer slots each."""

    @abstractmethod
    def encode_answers(
        self, completions: Sequence[Completion], slots: int
    ) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Local ids of given answers (for supervised training), and which slots they really fill."""

    @abstractmethod
    def valid(self, x: Int[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """Which slots of an answer count."""

    @abstractmethod
    def decode(self, x: Int[Tensor, "b t"]) -> list[Completion]:
        """What rewards see of an answer."""

    @abstractmethod
    def visible(self, x: Int[Tensor, "b t"]) -> list[Completion]:
        """What a user sees of an answer."""

    @abstractmethod
    def stored(self, completion: Completion) -> str:
        """A completion as records keep it."""

    @abstractmethod
    def pieces(self, x: Int[Tensor, "t"]) -> list[str]:
        """One readable string per slot, for reports."""
