"""The records that cross the phases of training, and the one idea that touches the model: a `Denoiser`.

Shape letters, here and everywhere: `b` rows (b = p * g), `p` prompts, `g` answers per prompt, `l` canvas length, `t`
answer slots, `k` answer vocabulary, `e` inner epochs, `v` views per epoch, `n` (row, slot) pairs.

Answers live in the local token space: ids 0 .. k-1, and `k` itself stands for MASK. Which ids of the model these are is
known to the denoiser alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.errors import UserError

R = TypeVar("R", bound="Rows")  # Self, in a form that run-time shape checks understand


class Rows:
    """Base of the records whose tensors have the rows `b` first."""

    def __getitem__(self: R, rows: slice | Int[Tensor, "_"] | Bool[Tensor, "_"]) -> R:
        """The record of these rows."""
        return self._map(lambda tensor: tensor[rows])

    def to(self: R, device: torch.device | str) -> R:
        """The record on another device."""
        return self._map(lambda tensor: tensor.to(device))

    @classmethod
    def concatenate(cls: type[R], parts: Sequence[R]) -> R:
        """The rows of all parts, which have the same fields set."""
        joined = {}
        for field in fields(cls):  # pyright: ignore[reportArgumentType]
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], Tensor):
                joined[field.name] = torch.cat(values)
            elif isinstance(values[0], Rows):
                joined[field.name] = values[0].concatenate(values)
        return replace(parts[0], **joined)  # pyright: ignore[reportArgumentType]

    def _map(self: R, f: Callable[[Tensor], Tensor]) -> R:
        changed = {}
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = f(value)
            elif isinstance(value, Rows):
                changed[field.name] = value._map(f)
        return replace(self, **changed)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True)
class Canvas(Rows):
    """What the model is shown around and between the answer slots. Example: `[pad pad] bos 2 + 3 = [slot] [slot]`."""

    ids: Int[Tensor, "b l"]  # global ids of prompt and furniture; anything at the slots
    slots: Int[Tensor, "b t"]  # where answer token j sits; -1: this row has no such slot
    attend: Bool[Tensor, "b l"] | None = None  # False hides a position from attention; None: nothing is hidden
    positions: Int[Tensor, "b l"] | None = None  # position ids; None: 0 .. l-1
    block: Int[Tensor, "b l"] | None = None  # block index per position, for block-causal models
    blank: "Canvas | None" = None  # the unconditional twin, of its own length, with the same slots t

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt(self) -> Bool[Tensor, "b l"]:
        """Visible positions that are not answer slots."""
        prompt = torch.ones_like(self.ids, dtype=torch.bool)
        prompt.scatter_(1, self.slots.clamp(min=0), self.slots < 0)
        return prompt if self.attend is None else prompt & self.attend


@dataclass(frozen=True, slots=True)
class Answer(Rows):
    """Finished answers and how they came about."""

    x: Int[Tensor, "b t"]  # local ids; no MASK left at a slot
    revealed_at: Int[Tensor, "b t"]  # denoising step (0 = first) that wrote the token; -1: given or no slot
    valid: Bool[Tensor, "b t"]  # text: up to and including the first end token; image: all
    entropy: Float[Tensor, "b t"] | None = None  # of the law the token was drawn from, nats
    logp: Float[Tensor, "b t"] | None = None  # of the token under the law it was drawn from


@dataclass(frozen=True, slots=True)
class View(Rows):
    """One masked view of the answers: what the policy does not see, and what each log-probability counts."""

    mask: Bool[Tensor, "b t"]
    weight: Float[Tensor, "b t"]  # > 0 only where mask is true
    hide: Bool[Tensor, "b l"] | None = None  # prompt positions that are masked as well


Views = Sequence[Sequence[View]]
"""Per epoch a sequence of v views. Drawn once per rollout batch: new, old and reference policy are scored on them."""


@dataclass(frozen=True)
class Law:
    """How a token is drawn from logits; shared by the sampler and by methods that score the sampling law.

    Args:
        temperature: of the softmax; 0 is argmax.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens whose probabilities first reach this sum; 1 keeps all.
        guidance: classifier-free guidance w in (1 + w) c - w u; 0 is off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 0.0

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"law.temperature must be >= 0, not {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"law.top_k must be >= 0 (0 keeps all), not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"law.top_p must be in (0, 1], not {self.top_p}")


@dataclass(frozen=True, slots=True)
class Rollouts(Rows):
    """One training step's answers with everything that judging and improving need. Nothing else crosses the phases."""

    canvas: Canvas
    answer: Answer
    group: Int[Tensor, "b"]  # index of the prompt in the step's batch, the same for siblings
    reward: Float[Tensor, "b"]
    keep: Bool[Tensor, "b"]  # False: the reward machinery failed; the row takes no part
    advantage: Float[Tensor, "b"]

    def __len__(self) -> int:
        return len(self.group)


@dataclass(frozen=True, slots=True)
class Scored:
    """What an objective sees of one update: log-probabilities of the same views under three policies."""

    new: Float[Tensor, "v b t"]
    old: Float[Tensor, "v b t"]
    ref: Float[Tensor, "v b t"] | None  # None when the objective has no KL term
    weight: Float[Tensor, "v b t"]
    advantage: Float[Tensor, "b"]
    valid: Bool[Tensor, "b t"]
    group: Int[Tensor, "b"]
    keep: Bool[Tensor, "b"]


class Denoiser(ABC):
    """A masked model as the algorithms see it: logits over the answer vocabulary at chosen (row, slot) pairs."""

    k: int  # answer vocabulary; MASK == k

    @abstractmethod
    def __call__(self, canvas: Canvas, x: Int[Tensor, "b t"], at: Int[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Float32 logits at the pairs `at` = (row, slot); ids that can never be an answer are at -inf."""


class Policy(Denoiser):
    """A denoiser that can also be scored, with gradients if they are enabled."""

    @abstractmethod
    def log_probabilities(
        self,
        canvas: Canvas,
        x: Int[Tensor, "b t"],
        at: Int[Tensor, "n 2"],
        target: Int[Tensor, "n"],
        hide: Bool[Tensor, "b l"] | None = None,
        temperature: float = 1.0,
    ) -> Float[Tensor, "n"]:
        """log softmax(logits / temperature)[target] at the pairs, float32; `hide` masks prompt positions too."""
