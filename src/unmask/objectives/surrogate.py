"""Policy-gradient surrogates whose action is the single token.

Notation: delta = new - old, A the advantage, eps the clip radius. loss = sum w (f(delta, A) + beta KL(u)) / sum w.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.errors import UserError
from unmask.objectives.base import Objective, Terms
from unmask.objectives.kl import Divergence
from unmask.types import Scored


@dataclass(frozen=True)
class TokenSurrogate(Objective):
    """Base of the token-level surrogates: weighted mean over the scored tokens of this epoch.

    Args:
        epsilon: clip radius.
        epsilon_high: upper clip radius where it differs from the lower one.
        kl: penalty towards the reference policy; null is none, and then no reference is scored.
    """

    epsilon: float = 0.2
    epsilon_high: float | None = None
    kl: Divergence | None = None

    def __post_init__(self):
        if self.epsilon < 0 or (self.epsilon_high is not None and self.epsilon_high < 0):
            raise UserError("objective.epsilon and epsilon_high must not be negative")

    @property
    def needs_reference(self) -> bool:
        return self.kl is not None

    @property
    def high(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @abstractmethod
    def surrogate(
        self, delta: Float[Tensor, "v b t"], advantage: Float[Tensor, "b 1"]
    ) -> tuple[Float[Tensor, "v b t"], Bool[Tensor, "v b t"]]:
        """f(delta, A) per token, and where the clip has stopped the gradient."""

    def denominator(self, weight, valid, keep):  # noqa: ARG002 - every scored token counts, whatever its row
        return (weight * keep[:, None]).sum()

    def __call__(self, scored: Scored) -> Terms:
        weight = scored.weight * scored.keep[:, None]
        delta = scored.new - scored.old
        loss, clipped = self.surrogate(delta, scored.advantage[:, None])
        with torch.no_grad():
            stats = {
                "tokens": weight.sum(),
                "clip_fraction": (weight * clipped).sum(),
                "log_ratio": (weight * delta.abs()).sum(),
                "nll": -(weight * scored.new).sum(),
            }
        if self.kl is not None and scored.ref is not None:
            divergence = self.kl(scored.ref - scored.new)
            stats["kl"] = (weight * divergence).sum().detach()
            loss = loss + self.kl.beta * divergence
        return Terms((weight * loss).sum(), stats)


@dataclass(frozen=True)
class Clip(TokenSurrogate):
    """PPO's clip per token: f = -min(e^delta A, clamp(e^delta, 1 - eps, 1 + eps) A) (GRPO, diffu-GRPO, MaskGRPO).

    The gradient stops for A > 0 above 1 + eps and for A < 0 below 1 - eps.
    """

    def surrogate(self, delta, advantage):
        ratio = delta.exp()
        free, clamped = ratio * advantage, ratio.clamp(1 - self.epsilon, 1 + self.high) * advantage
        return -torch.minimum(free, clamped), clamped < free


@dataclass(frozen=True)
class SignClip(TokenSurrogate):
    """One-sided clip in log space: A >= 0: -A min(e^delta, e^eps); A < 0: -A max(e^delta, e^-eps).

    This is what MaskGRPO's code calls "gmpo" and "gspo"; it is neither a geometric mean nor a sequence ratio.
    """

    def surrogate(self, delta, advantage):
        limited = torch.where(advantage >= 0, delta.clamp(max=self.high), delta.clamp(min=-self.epsilon))
        return -advantage * limited.exp(), limited != delta
