"""Samplers draw an answer from a denoiser; they differ in which slots open when, and in how a token is chosen."""

from unmask.samplers.base import Sampler
from unmask.samplers.confidence import Entropy, LowConfidence, Margin, TopProb
from unmask.samplers.guidance import Guided
from unmask.samplers.maskgit import MaskGIT
from unmask.samplers.planned import Ancestral, LeftToRight, RandomOrder

__all__ = [
    "Ancestral",
    "Entropy",
    "Guided",
    "LeftToRight",
    "LowConfidence",
    "Margin",
    "MaskGIT",
    "RandomOrder",
    "Sampler",
    "TopProb",
]
