"""Estimators of the divergence between the policy and the reference, from u = ref - new at the scored tokens."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from unmask.errors import UserError


@dataclass(frozen=True)
class Divergence(ABC):
    """A penalty per scored token.

    Args:
        beta: its coefficient.
    """

    beta: float = 0.01

    def __post_init__(self):
        if self.beta <= 0:
            raise UserError(f"kl.beta must be positive, not {self.beta}: for no KL term set kl to null")

    @abstractmethod
    def __call__(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The estimate from u = log ref - log new, without the coefficient."""


@dataclass(frozen=True)
class K1(Divergence):
    """-u: unbiased, but its gradient as a loss has zero mean. For reading, not for training."""

    def __call__(self, u):
        return -u


@dataclass(frozen=True)
class K2(Divergence):
    """u^2 / 2: gradient of KL(new || ref) on-policy, no exponential (ESPO's choice)."""

    def __call__(self, u):
        return u.square() / 2


@dataclass(frozen=True)
class K3(Divergence):
    """e^u - u - 1: gradient of KL(ref || new) on-policy; explodes where the reference is far (GRPO, MaskGRPO)."""

    def __call__(self, u):
        return u.exp() - u - 1
