"""Likelihood estimators: laws of views. A view says what the policy does not see and what each token counts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from unmask.errors import UserError
from unmask.random import Random
from unmask.types import Answer, Canvas, View, Views
from unmask.views.levels import Levels, Ramp
from unmask.views.support import Bernoulli, Support


class Likelihood(ABC):
    """Draws, once per rollout batch, the masked views on which new, old and reference policy are all scored."""

    @abstractmethod
    def draw(self, canvas: Canvas, answer: Answer, epochs: int, random: Random) -> Views:
        """`epochs` sequences of views; `random` holds b places, one per row."""


@dataclass(frozen=True)
class Masked(Likelihood):
    """Fresh masks of the finished answer: one view per epoch, every hidden valid token counts 1.

    Args:
        levels: the mask ratio per epoch.
        support: which slots are hidden at that ratio.
        hide_prompt: probability of hiding a prompt position as well (diffu-GRPO: 0.15), drawn anew per epoch.
        score_tail: also score the slots after the first end token.
    """

    levels: Levels = field(default_factory=Ramp)
    support: Support = field(default_factory=Bernoulli)
    hide_prompt: float = 0.0
    score_tail: bool = False

    def __post_init__(self):
        if not 0 <= self.hide_prompt < 1:
            raise UserError(f"likelihood.hide_prompt must be in [0, 1), not {self.hide_prompt}")

    def draw(self, canvas, answer, epochs, random):
        ratios = self.levels.draw(epochs, random.fold(0))
        scored = canvas.slots >= 0 if self.score_tail else answer.valid
        return [[self._view(canvas, scored, ratio, random.fold(1 + epoch))] for epoch, ratio in enumerate(ratios)]

    def _view(self, canvas: Canvas, scored: Bool[Tensor, "b t"], ratio: Tensor, random: Random) -> View:
        mask = self.support.draw(ratio, scored, random.fold(0))
        mask = mask | _one_of(scored, random.fold(1)) & ~(mask & scored).any(1, keepdim=True)
        hide = None
        if self.hide_prompt:
            hide = canvas.prompt & (random.fold(2).uniform(canvas.ids.shape[1]) < self.hide_prompt)
        return View(mask, (mask & scored).float(), hide)


def _one_of(slots: Bool[Tensor, "b t"], random: Random) -> Bool[Tensor, "b t"]:
    """One uniformly drawn slot per row: a row whose mask hides nothing that counts would score nothing."""
    best = random.uniform(slots.shape[1]).masked_fill(~slots, -1.0).argmax(1, keepdim=True)
    return torch.zeros_like(slots).scatter_(1, best, True) & slots
