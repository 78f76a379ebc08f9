"""Noise schedules: which share of the answer is masked at which time.

Time runs from 1 (all masked) to 0 (clean). `masked(1) = 1` and `masked(0) = 0` hold exactly, so a sampler that follows
a schedule leaves nothing behind. The reveal probability between two times is defined once, here, for every sampler.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from unmask.errors import UserError


class Schedule(ABC):
    """A monotone map from time in [0, 1] to the masked share in [0, 1]."""

    @abstractmethod
    def masked(self, time: float) -> float:
        """Masked share at `time`; 0 at 0 and 1 at 1."""

    def reveal(self, time: float, later: float) -> float:
        """Probability that a token masked at `time` is revealed by `later` < `time` (MDLM, arXiv 2406.07524).

        The reveals compose: staying masked from a to b and from b to c is staying masked from a to c.
        """
        return 1.0 - self.masked(later) / self.masked(time)


@dataclass(frozen=True)
class Linear(Schedule):
    """masked = time."""

    def masked(self, time: float) -> float:
        return time


@dataclass(frozen=True)
class Cosine(Schedule):
    """masked = sin(pi time / 2), that is cos(pi u / 2) in progress u = 1 - time (MaskGIT, arXiv 2202.04200)."""

    def masked(self, time: float) -> float:
        return math.sin(math.pi * time / 2)


@dataclass(frozen=True)
class Power(Schedule):
    """masked = 1 - (1 - time)^exponent."""

    exponent: float = 2.0

    def __post_init__(self):
        if self.exponent <= 0:
            raise UserError(f"schedule Power: exponent must be positive, not {self.exponent}")

    def masked(self, time: float) -> float:
        return 1.0 - (1.0 - time) ** self.exponent
