"""GenEval's verdict with another detector: whether a picture shows the objects of its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.errors import UserError
from unmask.rewards.base import Row, Score
from unmask.rewards.images.base import PictureReward
from unmask.rewards.images.geneval_rules import COLOURS, counted, mistakes
from unmask.rewards.images.similarity import CLIP_L

if TYPE_CHECKING:
    from PIL.Image import Image

    from unmask.rewards.images.geneval_rules import Detection
    from unmask.rewards.images.networks.clip import Clip
    from unmask.rewards.images.networks.detector import Detector

GREY = (153, 153, 153)
"""Around an object whose colour is asked for."""


@dataclass(frozen=True)
class GenEvalObjects(PictureReward):
    """1 if the picture shows what GenEval's rules ask for, else 0: "GenEval (HF detector)", see `geneval_rules`.

    The rules are GenEval's; the detector, Mask2Former with transformers' weights, is not: numbers are no GenEval
    scores. Colours are told by CLIP from each object, cut out on grey.

    Args:
        detector: folder or hub id of a Mask2Former of transformers for the 80 classes of COCO.
        clip: folder or hub id of the CLIP model.
        tokenizer: folder or hub id; empty is the CLIP model's.
        short_side: to which pictures are scaled for the detector, in pixels ...
        long_side: ... unless the long side would exceed this.
    """

    name: ClassVar[str] = "geneval"

    batch: int = 8
    detector: str = "facebook/mask2former-swin-small-coco-instance"
    clip: str = CLIP_L
    tokenizer: str = ""
    short_side: int = 800
    long_side: int = 1333

    def __post_init__(self):
        super().__post_init__()
        if not 32 <= self.short_side <= self.long_side <= 4096:
            raise UserError(
                f"reward geneval: 32 <= short_side <= long_side <= 4096 must hold, not {self.short_side} and "
                f"{self.long_side}"
            )

    def load(self) -> "tuple[Detector, Clip]":
        from unmask.rewards.images.networks.clip import load_clip
        from unmask.rewards.images.networks.detector import load_detector

        detector = load_detector(self.detector, self.device, self.dtype)
        return detector, load_clip(self.clip, self.tokenizer or self.clip, self.device, self.dtype)

    def judge(self, pictures: "Sequence[Image]", rows: Sequence[Row]) -> list[Score]:
        detector, clip = self.load()
        for row in rows:
            if not isinstance(row.get("include"), list) or not isinstance(row.get("tag"), str):
                raise UserError(
                    f"reward geneval: row {row.get('id', '?')} needs columns 'tag' and 'include': task geneval"
                )
        found = detector(pictures, self.short_side, self.long_side, self.batch)
        return [self._score(*one, clip) for one in zip(pictures, rows, found, strict=True)]

    def _score(self, picture: "Image", row: Row, found: "Sequence[Detection]", clip: "Clip") -> Score:
        objects = counted(found, row["tag"])
        wrong = mistakes(row, objects, lambda name, some: self._colours(picture, name, some, clip))
        seen = ", ".join(f"{len(some)} {name}" for name, some in sorted(objects.items()))
        told = {"reason": "; ".join(wrong)} if wrong else {}
        return Score.ok(float(not wrong), answer=seen or "nothing", **told)

    def _colours(self, picture: "Image", name: str, objects: "Sequence[Detection]", clip: "Clip") -> list[str]:
        cut = clip.pictures([cut_out(picture, one) for one in objects], self.batch)
        words = [
            text
            for colour in COLOURS
            for text in (
                f"a photo of a {colour} {name}",
                f"a photo of a {colour}-colored {name}",
                f"a photo of a {colour} object",
            )
        ]
        kinds = clip.texts(words, len(words)).unflatten(0, (len(COLOURS), 3)).mean(1)
        kinds = kinds / kinds.norm(dim=-1, keepdim=True)
        return [COLOURS[place] for place in (cut @ kinds.T).argmax(-1).tolist()]


def cut_out(picture: "Image", found: "Detection") -> "Image":
    """An object on grey, cut to its box."""
    from PIL import Image

    blank = Image.new("RGB", picture.size, GREY)
    return Image.composite(picture.convert("RGB"), blank, Image.fromarray(found.mask)).crop(found.box)
