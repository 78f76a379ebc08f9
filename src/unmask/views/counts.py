"""Masks of an exact number of slots, as image models are trained with (MaskGIT, arXiv 2202.04200; MMaDA)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.errors import UserError
from unmask.schedules import Cosine, Schedule


@dataclass(frozen=True)
class ExactCounts:
    """Of t slots, n = max(1, round(t p)) are hidden, with p = max(a(u), lowest) and u uniform on (0, 1).

    Args:
        schedule: the masked share a as a function of time.
        lowest: floor of the masked share p (MaskGRPO's script: 0.3).
    """

    schedule: Schedule = field(default_factory=Cosine)
    lowest: float = 0.0

    def __post_init__(self):
        if not 0 <= self.lowest <= 1:
            raise UserError(f"ExactCounts.lowest must be in [0, 1], not {self.lowest}")

    def share(self, u: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Masked share p of each row, where u is progress: 0 hides everything."""
        shares = [max(self.schedule.masked(1 - progress), self.lowest) for progress in u.tolist()]
        return torch.tensor(shares, device=u.device)

    def mask(self, u: Float[Tensor, "b"], noise: Float[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """The hidden slots; `noise` is uniform and orders them."""
        count = (noise.shape[1] * self.share(u)).round().clamp(min=1)
        return noise.argsort(1) < count[:, None]
