"""Which slots a view hides, given the mask ratio."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.random import Random


class Support(ABC):
    """Draws the hidden slots of one view."""

    @abstractmethod
    def draw(self, ratio: Float[Tensor, "b"], valid: Bool[Tensor, "b t"], random: Random) -> Bool[Tensor, "b t"]:
        """True where the policy sees MASK. The law covers all t slots: what a view shows of the tail is drawn too."""


@dataclass(frozen=True)
class Bernoulli(Support):
    """Every slot on its own with probability r."""

    def draw(self, ratio, valid, random):
        return random.uniform(valid.shape[1]) < ratio[:, None]


@dataclass(frozen=True)
class FadingOut(Support):
    """MaskGRPO's AR-like masking (arXiv 2510.02880): the probability of being hidden rises linearly along the answer.

    keep_i = min(1, s (1 - y_i)) with y_i = i / (t - 1) over the *answer* slots. For r >= 1/2, s = 2 (1 - r) and the
    mean over the slots is exactly r; for r < 1/2, s = 1 / (2 r) and the mean is r up to O(1/t). Left tokens become
    context, right tokens depend on them.

    Args:
        clamp: keep s = 2 (1 - r) below r = 1/2 as well, as the paper does; the mean then stays above r.
        over_valid: stretch the ramp over each row's valid slots, so that the *scored* share is r.
    """

    clamp: bool = False
    over_valid: bool = False

    def keep(self, ratio: Float[Tensor, "b"], valid: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Probability that a slot stays visible."""
        t = valid.shape[1]
        slot = torch.arange(t, device=ratio.device, dtype=ratio.dtype)[None]
        last = valid.sum(1, keepdim=True) - 1 if self.over_valid else torch.full_like(ratio, t - 1)[:, None]
        progress = torch.where(last > 0, slot / last.clamp(min=1), torch.full_like(slot, 0.5)).clamp(max=1)
        high = 2 * (1 - ratio)
        scale = high if self.clamp else torch.where(ratio >= 0.5, high, 0.5 / ratio.clamp(min=1e-6))
        keep = (scale[:, None] * (1 - progress)).clamp(max=1)
        return torch.where(last > 0, keep, 1 - ratio[:, None])  # a single slot has no ramp

    def draw(self, ratio, valid, random):
        return random.uniform(valid.shape[1]) > self.keep(ratio, valid)
