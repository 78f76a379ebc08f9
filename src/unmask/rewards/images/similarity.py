"""Rewards that are the cosine of a picture and its prompt in the space of a CLIP model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from unmask.rewards.base import Row, Score
from unmask.rewards.images.base import PictureReward

if TYPE_CHECKING:
    from PIL.Image import Image

    from unmask.rewards.images.networks.clip import Clip

CLIP_L = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Similarity(PictureReward, ABC):
    """A reward that is the cosine of picture and prompt in a CLIP space, times `factor`."""

    fit: ClassVar[Literal["crop", "pad"]] = "crop"

    @abstractmethod
    def load(self) -> "Clip": ...

    def factor(self, clip: "Clip") -> float:
        """What the cosine is multiplied by."""
        del clip
        return 1.0

    def judge(self, pictures: "Sequence[Image]", rows: Sequence[Row]) -> list[Score]:
        clip = self.load()
        texts = clip.texts(self.prompts(rows), self.batch)
        cosines = (clip.pictures(pictures, self.batch, self.fit) * texts).sum(-1)
        return self.scores((cosines * self.factor(clip)).tolist())


@dataclass(frozen=True)
class ClipScore(Similarity):
    """The cosine of picture and prompt; .15 to .35 for CLIP ViT-L/14 (arXiv 2104.08718, without its factor and clamp).

    Args:
        model: folder or hub id of a CLIP model of transformers.
        tokenizer: folder or hub id; empty is the model's.
    """

    name: ClassVar[str] = "clip"

    model: str = CLIP_L
    tokenizer: str = ""

    def load(self) -> "Clip":
        from unmask.rewards.images.networks.clip import load_clip

        return load_clip(self.model, self.tokenizer or self.model, self.device, self.dtype)


@dataclass(frozen=True)
class PickScore(Similarity):
    """PickScore (arXiv 2305.01569) / 26: logit scale times cosine, which is 18 to 24, brought near 1.

    Args:
        model: folder or hub id of a CLIP model of transformers.
        tokenizer: folder or hub id; all CLIP models have the same.
    """

    name: ClassVar[str] = "pickscore"

    model: str = "yuvalkirstain/PickScore_v1"
    tokenizer: str = CLIP_L

    def load(self) -> "Clip":
        from unmask.rewards.images.networks.clip import load_clip

        return load_clip(self.model, self.tokenizer, self.device, self.dtype)

    def factor(self, clip: "Clip") -> float:
        return clip.logit_scale / 26


@dataclass(frozen=True)
class HPScore(Similarity):
    """Human Preference Score v2 or v2.1 (arXiv 2306.09341): the cosine of picture and prompt, .2 to .35.

    Published numbers are 100 times this.

    Args:
        model: file with a ViT-H/14 in open_clip's layout, or OWNER/NAME:FILE of the hub; `HPS_v2_compressed.pt` beside
            the default is version 2.
        tokenizer: folder or hub id of a CLIP tokenizer.
    """

    name: ClassVar[str] = "hps"
    fit: ClassVar[Literal["crop", "pad"]] = "pad"

    model: str = "xswu/HPSv2:HPS_v2.1_compressed.pt"
    tokenizer: str = CLIP_L

    def load(self) -> "Clip":
        from unmask.rewards.images.networks.clip import load_hps

        return load_hps(self.model, self.tokenizer, self.device, self.dtype)
