"""The contract of image tokenizers: pictures to grids of codes and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.errors import UserError
from unmask.models.codec import CodecConfig, Decoder, Encoder
from unmask.models.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageTokenizer(nn.Module, ABC):
    """Pictures as grids of codes.

    Attributes:
        codes: size of the codebook.
        factor: pixels per code, along each side.
        pixel_range: of the pixels that go in and come out; those that come out may overshoot.
        rounds: eight-bit pictures are rounded as the original does; otherwise truncated.
    """

    codes: int
    factor: int
    pixel_range: tuple[float, float]
    rounds: bool

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def encode(self, pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b h w"]:
        """Codes 0 .. codes - 1 of pictures; `flatten(1)` is the order of tokens, row by row.

        Raises:
            UserError: sides that are no multiple of the factor.
        """

    @abstractmethod
    def decode(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Pixels of grids of codes, not clamped."""

    @classmethod
    @abstractmethod
    def of(cls, settings: Settings, shapes: Mapping[str, tuple[int, ...]], where: str) -> "ImageTokenizer":
        """The module, without values, for a `config.json` and the shapes of the tensors in the file `where`.

        Raises:
            UserError: a setting or a tensor that is missing or not supported.
        """

    @abstractmethod
    def names(self) -> dict[str, str]:
        """Official name -> neutral name of every module or parameter."""

    def whole(self, pixels: Tensor) -> None:
        """Raises UserError unless both sides are whole numbers of codes."""
        height, width = pixels.shape[-2:]
        if height % self.factor or width % self.factor:
            raise UserError(
                f"a picture of {width} x {height} pixels has no whole number of codes: "
                f"both sides must be multiples of {self.factor}"
            )

    def from_pictures(self, pictures: Sequence["Image"], size: tuple[int, int]) -> Float[Tensor, "b 3 height width"]:
        """Pixels of PIL images: scaled (bicubic) until they cover `size` (width, height), then cut at the centre."""
        rows = [np.asarray(_cover(picture, size), dtype=np.float32) / 255 for picture in pictures]
        low, high = self.pixel_range
        pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2) * (high - low) + low
        return pixels.contiguous().to(self.device)

    def to_pictures(self, pixels: Float[Tensor, "b 3 height width"]) -> list["Image"]:
        """PIL images of pixels, clamped to the range."""
        from PIL import Image

        low, high = self.pixel_range
        scaled = ((pixels.float() - low) / (high - low)).clamp(0, 1) * 255
        scaled = scaled.round() if self.rounds else scaled
        return [Image.fromarray(one) for one in scaled.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()]


class Convolutional(ImageTokenizer):
    """An image tokenizer that quantises what a convolutional encoder makes of a picture.

    Args:
        encoder, decoder: shapes of the two halves.
        width: numbers per code between them.
    """

    def __init__(self, encoder: CodecConfig, decoder: CodecConfig, width: int):
        super().__init__()
        self.encoder, self.decoder = Encoder(encoder), Decoder(decoder)
        self.before_quant = nn.Conv2d(encoder.outputs, width, 1)
        self.after_quant = nn.Conv2d(width, decoder.inputs, 1)
        self.factor = 2 ** (len(encoder.widths) - 1)

    @abstractmethod
    def quantise(self, z: Float[Tensor, "b z h w"]) -> Int[Tensor, "b h w"]:
        """Codes of latents."""

    @abstractmethod
    def entries(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b z h w"]:
        """Codebook entries of codes."""

    def latents(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b z h w"]:
        """What is quantised.

        Raises:
            UserError: sides that are no multiple of the factor.
        """
        self.whole(pixels)
        return self.before_quant(self.encoder(pixels))

    @torch.no_grad()
    def encode(self, pixels):
        return self.quantise(self.latents(pixels))

    @torch.no_grad()
    def decode(self, codes):
        return self.decoder(self.after_quant(self.entries(codes)))


def _cover(picture: "Image", size: tuple[int, int]) -> "Image":
    from PIL import Image

    picture = picture.convert("RGB")
    scale = max(size[0] / picture.width, size[1] / picture.height)
    width, height = (max(side, round(old * scale)) for side, old in zip(size, picture.size, strict=True))
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))
