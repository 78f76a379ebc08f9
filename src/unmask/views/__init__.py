"""Laws of masks, and the likelihood estimators that are built on them."""

from unmask.views.counts import ExactCounts
from unmask.views.levels import Always, Levels, Ramp, RandomStart
from unmask.views.likelihood import Likelihood, Masked
from unmask.views.score import score
from unmask.views.support import Bernoulli, FadingOut, Support

__all__ = [
    "Always",
    "Bernoulli",
    "ExactCounts",
    "FadingOut",
    "Levels",
    "Likelihood",
    "Masked",
    "Ramp",
    "RandomStart",
    "Support",
    "score",
]
