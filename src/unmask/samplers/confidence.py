"""Samplers that write the slots the model is most sure of.

Confidences are taken at temperature 1, whatever the temperature of the tokens.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.samplers.base import Drawn, Sampler, State, dream_counts, pairs, transfer_counts


@dataclass(frozen=True)
class _BySchedule(Sampler):
    """The common loop: score the open slots, write the best ones, as many per step as the transfer counts say.

    Args:
        counts: `even` shares the slots of a block among its steps (LLaDA); `dream` is Dream's rule, see `dream_counts`.
    """

    counts: Literal["even", "dream"] = "even"

    def fill(self, state: State, among: Bool[Tensor, "b t"], steps: int, first: int) -> None:
        unknown = among.sum(1)
        counts = dream_counts(unknown, steps) if self.counts == "dream" else transfer_counts(unknown, steps)
        per_step = counts.T.tolist()  # the one read-back of this call
        remaining = int(sum(map(sum, per_step)))
        among = among.clone()
        for step, numbers in enumerate(per_step):
            if not any(numbers):
                continue
            at = pairs(among, remaining)
            chosen = self.write(state, at, counts[:, step], max(numbers), sum(numbers), first + step)
            among[chosen[:, 0], chosen[:, 1]] = False
            remaining -= sum(numbers)

    @abstractmethod
    def write(
        self, state: State, at: Int[Tensor, "n 2"], count: Int[Tensor, "b"], most: int, total: int, step: int
    ) -> Int[Tensor, "m 2"]:
        """Writes the best `count` of the pairs `at` in each row and returns them; `total` is the sum of counts."""


def best(
    score: Float[Tensor, "n"], at: Int[Tensor, "n 2"], count: Int[Tensor, "b"], most: int, total: int, t: int
) -> Int[Tensor, "m"]:
    """Indices into `at` of the `count` pairs with the highest score in each row (m = total <= b * most)."""
    index = (at[:, 0], at[:, 1])
    table = score.new_full((len(count), t), -torch.inf)
    table[index] = score.clamp(min=torch.finfo(score.dtype).min)
    place = torch.zeros_like(table, dtype=torch.int64)
    place[index] = torch.arange(len(at), device=at.device)
    slots = table.topk(most, dim=1).indices
    taken = torch.arange(most, device=at.device) < count[:, None]
    where = pairs(taken, total)
    return place.gather(1, slots)[where[:, 0], where[:, 1]]


@dataclass(frozen=True)
class PositionFirst(_BySchedule):
    """Chooses the slots by the shape of their law, then draws the tokens there: tokens keep the law that is scored."""

    @abstractmethod
    def confidence(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """How sure the model is of each slot; larger is written earlier."""

    def write(self, state, at, count, most, total, step):
        logits = state.logits(at)
        chosen = best(self.confidence(logits), at, count, most, total, state.x.shape[1])
        at = at[chosen]
        state.write(state.draw(logits[chosen], at, step), at, step)
        return at


@dataclass(frozen=True)
class TopProb(PositionFirst):
    """The slots whose most likely token has the largest probability."""

    def confidence(self, logits):
        return logits.amax(-1) - logits.logsumexp(-1)


@dataclass(frozen=True)
class Entropy(PositionFirst):
    """The slots of smallest entropy (Dream, DiffuCoder)."""

    def confidence(self, logits):
        logp = logits.log_softmax(-1)
        return (logp.exp() * logp.masked_fill(logp == -torch.inf, 0)).sum(-1)


@dataclass(frozen=True)
class Margin(PositionFirst):
    """The slots with the largest gap between the two most likely tokens."""

    def confidence(self, logits):
        top = logits.softmax(-1).topk(2, dim=-1).values
        return top[:, 0] - top[:, 1]


@dataclass(frozen=True)
class LowConfidence(_BySchedule):
    """LLaDA's order (arXiv 2502.09992): draw a token at every open slot, keep the surest ones, re-mask the rest.

    The confidence of a drawn token is its probability at temperature 1. A token other than the most likely one survives
    only if it also wins against the other slots, so at temperature > 0 this explores less than `TopProb`, and the
    tokens that survive do not follow the law that is scored (methods that score trajectories should not use it).
    """

    def write(self, state, at, count, most, total, step):
        logits = state.logits(at)
        drawn = state.draw(logits, at, step)
        confidence = logits.gather(1, drawn.token[:, None])[:, 0] - logits.logsumexp(-1)
        chosen = best(confidence, at, count, most, total, state.x.shape[1])
        at = at[chosen]
        logp, entropy = (None if part is None else part[chosen] for part in (drawn.logp, drawn.entropy))
        state.write(Drawn(drawn.token[chosen], logp, entropy), at, step)
        return at
