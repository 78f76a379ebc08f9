"""Objectives: what is minimised, as a function of log-probabilities; and how its gradient reaches the policy."""

from unmask.objectives.base import Objective, Terms
from unmask.objectives.gradient import accumulate_gradient
from unmask.objectives.kl import K1, K2, K3, Divergence
from unmask.objectives.surrogate import Clip, SignClip, TokenSurrogate

__all__ = [
    "K1",
    "K2",
    "K3",
    "Clip",
    "Divergence",
    "Objective",
    "SignClip",
    "Terms",
    "TokenSurrogate",
    "accumulate_gradient",
]
