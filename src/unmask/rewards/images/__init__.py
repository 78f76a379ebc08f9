"""Rewards for pictures: frozen networks that say how well a picture fits its prompt, or how good it looks."""

from unmask.rewards.images.aesthetic import Aesthetic
from unmask.rewards.images.base import PictureReward
from unmask.rewards.images.geneval import GenEvalObjects
from unmask.rewards.images.image_reward import ImageRewardScore
from unmask.rewards.images.similarity import ClipScore, HPScore, PickScore

__all__ = [
    "Aesthetic",
    "ClipScore",
    "GenEvalObjects",
    "HPScore",
    "ImageRewardScore",
    "PickScore",
    "PictureReward",
]
