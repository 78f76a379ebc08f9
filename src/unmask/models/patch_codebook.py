"""The smallest image tokenizer: a codebook of square patches of pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.errors import UserError
from unmask.models.image_tokenizer import ImageTokenizer
from unmask.models.settings import Settings
from unmask.models.weights import write_json
from unmask.tensors import write_tensors

if TYPE_CHECKING:
    from PIL.Image import Image


class PatchCodebook(ImageTokenizer):
    """A code is the number of the nearest patch of the codebook. Pixels are in [0, 255].

    Args:
        codes: size of the codebook.
        patch: pixels along a side of a patch.
    """

    pixel_range = (0.0, 255.0)
    rounds = True

    def __init__(self, codes: int, patch: int):
        super().__init__()
        self.codes, self.factor = codes, patch
        self.codebook = nn.Parameter(torch.empty(codes, 3 * patch * patch), requires_grad=False)

    def encode(self, pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b h w"]:
        self.whole(pixels)
        side = self.factor
        patches = pixels.unfold(2, side, side).unfold(3, side, side)  # [b 3 h w side side]
        rows = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return torch.cdist(rows.flatten(0, 2), self.codebook).argmin(1).view(rows.shape[:3])

    def decode(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        b, h, w = codes.shape
        side = self.factor
        patches = self.codebook[codes].view(b, h, w, 3, side, side)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, 3, h * side, w * side)

    def names(self) -> dict[str, str]:
        return {"codebook": "codebook"}

    @classmethod
    def of(cls, settings: Settings, shapes: Mapping[str, tuple[int, ...]], where: str) -> "PatchCodebook":
        patch = settings.integer("patch_size", 64)
        if len(shapes.get("codebook", ())) != 2:
            raise UserError(f"{where}: tensor codebook [codes, 3 x patch_size^2] is missing: restore the original file")
        return cls(shapes["codebook"][0], patch)

    @classmethod
    def of_pictures(cls, pictures: Sequence["Image"], codes: int, patch: int) -> "PatchCodebook":
        """The most frequent patches of pictures of one size, the most frequent first (ties: in order of their bytes).

        Raises:
            ValueError: the pictures have fewer patches than `codes`.
        """
        pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        b, h, w, _ = pixels.shape
        cut = pixels.reshape(b, h // patch, patch, w // patch, patch, 3).transpose(0, 1, 3, 5, 2, 4)
        width = 3 * patch * patch
        whole = np.ascontiguousarray(cut.reshape(-1, width)).view(f"V{width}")  # sorted as bytes, many times faster
        distinct, counts = np.unique(whole, return_counts=True)
        if len(distinct) < codes:
            raise ValueError(f"the pictures have {len(distinct)} different patches, fewer than {codes}")
        order = np.argsort(-counts, kind="stable")[:codes]
        module = cls(codes, patch)
        module.codebook.copy_(torch.from_numpy(distinct[order].view(np.uint8).reshape(codes, width)))
        return module

    def save(self, folder: Path) -> None:
        """Writes `config.json` and `model.safetensors`; colours are stored in eight bits."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {"_class_name": "PatchCodebook", "patch_size": self.factor})
        stored = self.codebook.round().to(torch.uint8)
        write_tensors(folder / "model.safetensors", {"codebook": stored})
