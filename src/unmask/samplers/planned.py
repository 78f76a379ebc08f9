"""Samplers whose order does not depend on the model: the step of every slot is planned before the first forward.

So each step asks logits only for the slots that it opens, and the law of the answer given the order is exactly the
product of the drawn tokens' probabilities (no correction for the order is needed in a policy gradient).
"""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.random import Random
from unmask.samplers.base import Sampler, State, pairs, transfer_counts
from unmask.schedules import Cosine, Schedule


def _step_of_rank(rank: Int[Tensor, "b t"], among: Bool[Tensor, "b t"], steps: int) -> Int[Tensor, "b t"]:
    """The step that writes the slot of this rank (0 = first) when the transfer counts say how many go per step."""
    ends = transfer_counts(among.sum(1), steps).cumsum(1)
    return torch.searchsorted(ends, rank.contiguous(), right=True)


class Planned(Sampler):
    """Base of the samplers that plan all steps ahead."""

    @abstractmethod
    def plan(self, among: Bool[Tensor, "b t"], steps: int, random: Random) -> Int[Tensor, "b t"]:
        """The step 0 .. steps-1 at which each slot `among` is written; entries elsewhere are not read."""

    def fill(self, state: State, among: Bool[Tensor, "b t"], steps: int, first: int) -> None:
        plan = self.plan(among, steps, state.random.fold(first).fold(-1)).where(among, steps)
        counts = torch.bincount(plan.flatten(), minlength=steps + 1).tolist()  # the one read-back of this call
        for step in range(steps):
            if counts[step]:
                at = pairs(plan == step, counts[step])
                state.write(state.draw(state.logits(at), at, first + step), at, first + step)


@dataclass(frozen=True)
class RandomOrder(Planned):
    """Slots in uniformly random order, as many per step as the transfer counts say."""

    def plan(self, among, steps, random):
        priority = random.uniform(among.shape[1]).masked_fill(~among, 2.0)
        return _step_of_rank(priority.argsort(1).argsort(1), among, steps)


@dataclass(frozen=True)
class LeftToRight(Planned):
    """Slots from left to right, as many per step as the transfer counts say."""

    def plan(self, among, steps, random):  # noqa: ARG002 - nothing here is random
        return _step_of_rank(among.cumsum(1) - 1, among, steps)


@dataclass(frozen=True)
class Ancestral(Planned):
    """The exact posterior of the masking process (MDLM, arXiv 2406.07524), MaskGRPO's "emerge" sampler.

    A slot still masked before step n of N is revealed with probability (a(n) - a(n+1)) / a(n), each slot on its own.
    Its step is therefore n with probability a(n) - a(n+1), which is what the plan draws.

    Args:
        schedule: the masked share a as a function of time.
        exact_count: reveal round(t (1 - a)) slots in random order instead: the same expectation, less variance.
    """

    schedule: Schedule = field(default_factory=Cosine)
    exact_count: bool = False

    def plan(self, among, steps, random):
        times = torch.arange(steps - 1, 0, -1, device=among.device).tolist()
        masked = torch.tensor([self.schedule.masked(time / steps) for time in times], device=among.device)
        u = random.uniform(among.shape[1])
        if self.exact_count:
            rank = u.masked_fill(~among, 2.0).argsort(1).argsort(1)
            u = 1 - (rank + 0.5) / among.sum(1, keepdim=True).clamp(min=1)
        # a(1) > a(2) > ... > a(N-1): the slot is still masked after as many steps as there are shares above u
        return steps - 1 - torch.searchsorted(masked.flip(0), u)
