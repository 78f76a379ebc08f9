"""How good a picture looks, whatever was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unmask.rewards.base import Row, Score
from unmask.rewards.images.base import PictureReward
from unmask.rewards.images.similarity import CLIP_L

if TYPE_CHECKING:
    from PIL.Image import Image

    from unmask.rewards.images.networks.clip import Clip


@dataclass(frozen=True)
class Aesthetic(PictureReward):
    """LAION's aesthetic score, roughly 1 to 10: linear layers on the unit vector of CLIP ViT-L/14. Reads no prompt.

    Args:
        model: folder or hub id of the CLIP model.
        tokenizer: folder or hub id; empty is the model's.
        head: file with the linear layers (`layers.N.weight`, `layers.N.bias`), or OWNER/NAME:FILE of the hub.
    """

    name: ClassVar[str] = "aesthetic"

    model: str = CLIP_L
    tokenizer: str = ""
    head: str = "trl-lib/ddpo-aesthetic-predictor:aesthetic-model.pth"

    def load(self) -> "tuple[Clip, Any]":
        from unmask.rewards.images.networks.clip import load_clip
        from unmask.rewards.images.networks.head import load_head

        clip = load_clip(self.model, self.tokenizer or self.model, self.device, self.dtype)
        return clip, load_head(self.head, clip.model.config.projection_dim)

    def judge(self, pictures: "Sequence[Image]", rows: Sequence[Row]) -> list[Score]:
        del rows
        clip, head = self.load()
        return self.scores(head(clip.pictures(pictures, self.batch))[:, 0].tolist())
