"""How well a picture fits its prompt, as people judged it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.rewards.base import Row, Score
from unmask.rewards.images.base import PictureReward

if TYPE_CHECKING:
    from PIL.Image import Image

    from unmask.rewards.images.networks.blip import ImageRewardNetwork


@dataclass(frozen=True)
class ImageRewardScore(PictureReward):
    """ImageReward (arXiv 2304.05977): a z-score of a picture and its prompt, about -2 to 2.

    Args:
        model: file with the released weights, or OWNER/NAME:FILE of the hub.
        tokenizer: folder or hub id of BERT's tokenizer.
    """

    name: ClassVar[str] = "imagereward"

    model: str = "THUDM/ImageReward:ImageReward.pt"
    tokenizer: str = "google-bert/bert-base-uncased"

    def load(self) -> "ImageRewardNetwork":
        from unmask.rewards.images.networks.blip import load_image_reward

        return load_image_reward(self.model, self.tokenizer, self.device, self.dtype)

    def judge(self, pictures: "Sequence[Image]", rows: Sequence[Row]) -> list[Score]:
        network, prompts = self.load(), self.prompts(rows)
        values: list[float] = []
        for start in range(0, len(pictures), self.batch):
            part = slice(start, start + self.batch)
            values += network.scores(pictures[part], prompts[part]).tolist()
        return self.scores(values)
