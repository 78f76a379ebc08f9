"""MaskGIT's sampler (arXiv 2202.04200): draw every open slot, keep the surest tokens, with noise that anneals."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.errors import UserError
from unmask.samplers.base import Drawn, Sampler, State, pairs
from unmask.samplers.confidence import best
from unmask.schedules import Cosine, Schedule


def maskgit_counts(unknown: Int[Tensor, "b"], steps: int, schedule: Schedule) -> Int[Tensor, "b steps"]:
    """How many slots each step writes: max(1, min(left - 1, floor(n a))) stay open after it, none after the last."""
    left, counts = unknown, []
    for step in range(1, steps):
        wanted = (unknown.double() * schedule.masked((steps - step) / steps)).long()
        stay = torch.minimum(torch.minimum(left - 1, wanted).clamp(min=1), left)
        counts.append(left - stay)
        left = stay
    return torch.stack([*counts, left], 1)


@dataclass(frozen=True)
class MaskGIT(Sampler):
    """Tokens first, then the surest slots: confidence = log p(token) + tau Gumbel, p at temperature 1.

    Tokens that survive do not follow the law that is scored, as for `LowConfidence`.

    Args:
        schedule: the masked share as a function of time; it decides how many slots each step writes.
        noise: scale of the noise, before it anneals.
        annealing: linear: tau = noise (1 - (n + 1) / N) at step n of N. The others are for parity: compounded
            multiplies by that factor at every step (the code of MMaDA and MaskGRPO), none keeps the noise (that of
            Lumina-DiMOO).
    """

    schedule: Schedule = field(default_factory=Cosine)
    noise: float = 1.0
    annealing: Literal["linear", "compounded", "none"] = "linear"

    def __post_init__(self):
        super().__post_init__()
        if self.noise < 0:
            raise UserError(f"sampler.noise must not be negative, not {self.noise}")

    def tau(self, step: int, steps: int) -> float:
        """Scale of the noise at step 0 .. steps - 1."""
        factors = [1 - (i + 1) / steps for i in range(step + 1)]
        return self.noise * {"linear": factors[-1], "compounded": math.prod(factors), "none": 1.0}[self.annealing]

    def gumbel(self, state: State, at: Int[Tensor, "n 2"], step: int) -> Float[Tensor, "n"]:
        """Gumbel noise of the confidences."""
        return state.random.fold(step)[at[:, 0]].fold(at[:, 1]).fold(-1).gumbel(1)[:, 0]

    def fill(self, state: State, among: Bool[Tensor, "b t"], steps: int, first: int) -> None:
        counts = maskgit_counts(among.sum(1), steps, self.schedule)
        per_step = counts.T.tolist()  # the one read-back of this call
        remaining, among = int(sum(map(sum, per_step))), among.clone()
        for step, numbers in enumerate(per_step):
            if not any(numbers):
                continue
            at = pairs(among, remaining)
            logits = state.logits(at)
            drawn = state.draw(logits, at, first + step)
            sure = logits.gather(1, drawn.token[:, None])[:, 0] - logits.logsumexp(-1)
            sure = sure + self.tau(step, steps) * self.gumbel(state, at, first + step)
            chosen = best(sure, at, counts[:, step], max(numbers), sum(numbers), state.x.shape[1])
            at = at[chosen]
            logp, entropy = (None if part is None else part[chosen] for part in (drawn.logp, drawn.entropy))
            state.write(Drawn(drawn.token[chosen], logp, entropy), at, first + step)
            among[at[:, 0], at[:, 1]] = False
            remaining -= sum(numbers)
