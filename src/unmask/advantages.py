"""Advantages: rewards of siblings compared with each other. Rows that are not kept take no part in any statistic."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Advantage(ABC):
    """Rewards `[p g]` to advantages `[p g]`; rows with `keep` false get 0."""

    @abstractmethod
    def __call__(self, reward: Float[Tensor, "p g"], keep: Bool[Tensor, "p g"]) -> Float[Tensor, "p g"]:
        """The advantage of each answer over its siblings."""


def _centre(reward: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards minus the mean of the kept siblings (0 where not kept), and how many were kept `[p 1]`."""
    count = keep.sum(1, keepdim=True)
    kept = torch.where(keep, reward, 0)
    centred = torch.where(keep, kept - kept.sum(1, keepdim=True) / count.clamp(min=1), 0)
    # equal rewards must give exactly 0, whatever the rounding of their mean
    top = torch.where(keep, reward, -torch.inf).amax(1, keepdim=True)
    low = torch.where(keep, reward, torch.inf).amin(1, keepdim=True)
    return torch.where(top > low, centred, 0), count


@dataclass(frozen=True)
class Centered(Advantage):
    """R - mean: unbiased, keeps the scale of the reward (d1, SPG, GDPO; Dr. GRPO arXiv 2503.20783)."""

    def __call__(self, reward, keep):
        return _centre(reward, keep)[0]


@dataclass(frozen=True)
class Standardized(Advantage):
    """(R - mean) / (std + constant), std unbiased (GRPO arXiv 2402.03300, MaskGRPO, UniGRPO)."""

    constant: float = 1e-5

    def __call__(self, reward, keep):
        centred, count = _centre(reward, keep)
        std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        return centred / (std + self.constant)


@dataclass(frozen=True)
class LeaveOneOut(Advantage):
    """R_i - mean of the others = g / (g - 1) (R_i - mean) (RLOO; coupled-GRPO, ESPO)."""

    def __call__(self, reward, keep):
        centred, count = _centre(reward, keep)
        return centred * count / (count - 1).clamp(min=1)


@dataclass(frozen=True)
class Ranked(Advantage):
    """Another advantage of the win rates (#worse + #equal / 2) / (g - 1): no scale, no outliers (Pref-GRPO's idea)."""

    then: Advantage = field(default_factory=Centered)

    def __call__(self, reward, keep):
        other = keep[:, None, :] & ~torch.eye(reward.shape[1], dtype=torch.bool, device=reward.device)
        ahead = (reward[:, :, None] > reward[:, None, :]).to(reward.dtype)
        equal = (reward[:, :, None] == reward[:, None, :]).to(reward.dtype)
        wins = ((ahead + 0.5 * equal) * other).sum(2) / other.sum(2).clamp(min=1)
        return self.then(torch.where(keep, wins, 0), keep)
