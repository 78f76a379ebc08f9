"""Mask ratios: how much of an answer a view hides, per inner epoch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.errors import UserError
from unmask.random import Random


class Levels(ABC):
    """Draws the mask ratio r of every epoch and row."""

    @abstractmethod
    def draw(self, epochs: int, random: Random) -> Float[Tensor, "e b"]:
        """Ratios in (0, 1]; `random` holds b places."""


@dataclass(frozen=True)
class Always(Levels):
    """The same ratio in every epoch; 1 hides the whole answer (the mean-field view of diffu-GRPO)."""

    ratio: float = 1.0

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise UserError(f"Always.ratio must be in (0, 1], not {self.ratio}")

    def draw(self, epochs, random):
        return torch.full((epochs, len(random)), self.ratio, device=random.state.device)


@dataclass(frozen=True)
class Ramp(Levels):
    """MaskGRPO's truncated ramp (arXiv 2510.02880): r_j = gamma + (1 - gamma)(j + 1) / e, for j = 0 .. e-1.

    Nearly clean states are left out (their tokens are trivial and carry no credit); the last epoch hides everything.
    One epoch would always be r = 1, so for e = 1 the ratio is drawn uniformly from (gamma, 1).

    Args:
        gamma: lowest ratio, not reached.
        cap: upper bound of the ratio; the released code has 0.999.
    """

    gamma: float = 0.6
    cap: float = 1.0

    def __post_init__(self):
        if not 0 <= self.gamma < 1:
            raise UserError(f"Ramp.gamma must be in [0, 1), not {self.gamma}")
        if not self.gamma < self.cap <= 1:
            raise UserError(f"Ramp.cap must be in (gamma, 1], not {self.cap}")

    def draw(self, epochs, random):
        if epochs == 1:
            ratio = self.gamma + (1 - self.gamma) * random.uniform(1).T
        else:
            share = torch.arange(1, epochs + 1, device=random.state.device) / epochs
            ratio = (self.gamma + (1 - self.gamma) * share)[:, None].expand(epochs, len(random))
        return ratio.clamp(max=self.cap)


@dataclass(frozen=True)
class RandomStart(Levels):
    """UniGRPO (MMaDA, arXiv 2505.15809, algorithm 1): a random first time, then evenly spaced times up to the end.

    tau_1 = floor(U T), tau_n = floor((n-1)/(e-1) (T - tau_1) + tau_1), ratio tau_n / T; the last epoch hides all.
    A ratio of 0 would score nothing and is raised to 1 / T. For e = 1 the ratio is uniform on (0, 1).

    Args:
        steps: number T of diffusion times.
    """

    steps: int = 1000

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"RandomStart.steps must be at least 1, not {self.steps}")

    def draw(self, epochs, random):
        u = random.uniform(1).T
        if epochs == 1:
            return u
        start = (u * self.steps).long()
        number = torch.arange(epochs, device=u.device)[:, None]
        times = number * (self.steps - start) // (epochs - 1) + start
        return times.clamp(1, self.steps) / self.steps
