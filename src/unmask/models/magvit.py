"""MAGVIT-v2, the image tokenizer of MMaDA, with lookup-free quantisation (arXiv 2310.05737)."""

from collections.abc import Mapping

import torch

from unmask.errors import UserError
from unmask.models.codec import CodecConfig, CodecNames
from unmask.models.image_tokenizer import Convolutional
from unmask.models.settings import Settings

NAMES = CodecNames(
    stages=("down.{}", "up.{}"),
    resample=("downsample.conv", "upsample.conv"),
    reverse=True,
    block="block.{}",
    shortcut="nin_shortcut",
    middle=("mid.block_1", "mid.block_2", "mid.attn_1"),
    attention=("norm", "q", "k", "v", "proj_out"),
    norm_out="norm_out",
)
DERIVED = ("quantize.embedding", "quantize.power_vals")
"""Tensors of the file that follow from the number of bits."""


class Magvit(Convolutional):
    """A code is the signs of its latents: bit c, the most significant first, is latent c > 0.

    Pixels are in [-1, 1].
    """

    pixel_range = (-1.0, 1.0)
    rounds = False

    def __init__(self, encoder: CodecConfig, decoder: CodecConfig):
        super().__init__(encoder, decoder, encoder.outputs)
        self.codes = 2**encoder.outputs
        self._shifts = tuple(range(encoder.outputs - 1, -1, -1))

    def quantise(self, z):
        weights = 2 ** torch.tensor(self._shifts, device=z.device)
        return ((z > 0) * weights[:, None, None]).sum(1)

    def entries(self, codes):
        bits = codes[:, None] >> torch.tensor(self._shifts, device=codes.device)[:, None, None] & 1
        return (bits * 2 - 1).to(self.after_quant.weight.dtype)

    def names(self) -> dict[str, str]:
        """Official name -> neutral name of every module."""
        halves = {"encoder": self.encoder, "decoder": self.decoder}
        inside = {
            f"{n}.{theirs}": f"{n}.{ours}" for n, half in halves.items() for theirs, ours in NAMES.of(half).items()
        }
        return inside | {"encoder.quant_conv": "before_quant", "decoder.post_quant_conv": "after_quant"}

    @classmethod
    def of(cls, settings: Settings, shapes: Mapping[str, tuple[int, ...]], where: str) -> "Magvit":
        """The module for these tensors: its `config.json` says nothing about sizes, so the shapes do.

        Raises:
            UserError: a tensor that tells a size is not there.
        """
        del settings

        def channels(name: str) -> tuple[int, ...]:
            if name not in shapes:
                raise UserError(f"{where}: tensor {name} is missing: this is no MAGVIT-v2; fetch or copy it again")
            return shapes[name]

        def half(name: str, stages: str, reverse: bool) -> CodecConfig:
            widths, blocks = [], []
            while f"{name}.{stages}.{len(widths)}.block.0.conv1.weight" in shapes:
                level = f"{name}.{stages}.{len(widths)}"
                widths.append(channels(f"{level}.block.0.conv1.weight")[0])
                counted = 1
                while f"{level}.block.{counted}.conv1.weight" in shapes:
                    counted += 1
                blocks.append(counted)
            step = -1 if reverse else 1
            first, inputs = channels(f"{name}.conv_in.weight")[:2]
            outputs = channels(f"{name}.conv_out.weight")[0]
            return CodecConfig(inputs, outputs, tuple(widths[::step]), tuple(blocks[::step]), first, attention=True)

        return cls(half("encoder", "down", False), half("decoder", "up", True))
