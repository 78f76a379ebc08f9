"""`VQModel` of diffusers, the image tokenizer of Lumina-DiMOO: nearest entries of a learned codebook (VQGAN)."""

from collections.abc import Mapping

import torch
from torch import nn

from unmask.models.codec import CodecConfig, CodecNames
from unmask.models.image_tokenizer import Convolutional
from unmask.models.settings import Settings

NAMES = CodecNames(
    stages=("down_blocks.{}", "up_blocks.{}"),
    resample=("downsamplers.0.conv", "upsamplers.0.conv"),
    reverse=False,
    block="resnets.{}",
    shortcut="conv_shortcut",
    middle=("mid_block.resnets.0", "mid_block.resnets.1", "mid_block.attentions.0"),
    attention=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    norm_out="conv_norm_out",
)


class VQModel(Convolutional):
    """A code is the number of the nearest codebook entry. Pixels are in [0, 1]."""

    pixel_range = (0.0, 1.0)
    rounds = True

    def __init__(self, encoder: CodecConfig, decoder: CodecConfig, codes: int, width: int):
        super().__init__(encoder, decoder, width)
        self.codes, self.embedding = codes, nn.Embedding(codes, width)

    def quantise(self, z):
        distances = torch.cdist(z.movedim(1, -1).flatten(0, 2), self.embedding.weight)
        return distances.argmin(1).view(len(z), *z.shape[2:])

    def entries(self, codes):
        return self.embedding(codes).movedim(-1, 1)

    def names(self) -> dict[str, str]:
        """Official name -> neutral name of every module."""
        halves = {"encoder": self.encoder, "decoder": self.decoder}
        inside = {
            f"{n}.{theirs}": f"{n}.{ours}" for n, half in halves.items() for theirs, ours in NAMES.of(half).items()
        }
        outside = {"quant_conv": "before_quant", "post_quant_conv": "after_quant", "quantize.embedding": "embedding"}
        return inside | outside

    @classmethod
    def of(cls, settings: Settings, shapes: Mapping[str, tuple[int, ...]], where: str) -> "VQModel":
        """The module of a configuration. `mid_block_add_attention` may be missing: true, as in diffusers.

        Raises:
            UserError: a key that is missing or has a value that is not supported.
        """
        del shapes, where
        widths = settings.integers("block_out_channels")
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if settings.get(key) != [kind] * len(widths):
                raise settings.error(key, f"{kind} for each of the {len(widths)} block_out_channels")
        settings.require("act_fn", "silu")
        settings.require_if_given("norm_type", "group")
        settings.require("lookup_from_codebook", True)
        settings.require_if_given("mid_block_add_attention", True, False)
        shared = {
            "attention": settings.values.get("mid_block_add_attention", True),
            "groups": settings.integer("norm_num_groups"),
        }
        layers, latent = settings.integer("layers_per_block"), settings.integer("latent_channels")
        inputs, outputs = settings.integer("in_channels"), settings.integer("out_channels")
        odd = [width for width in widths if width % shared["groups"]]
        if odd:
            raise settings.error(
                "norm_num_groups", f"a divisor of every entry of block_out_channels, and {odd[0]} is one"
            )
        encoder = CodecConfig(inputs, latent, widths, (layers,) * len(widths), widths[0], **shared)
        decoder = CodecConfig(latent, outputs, widths[::-1], (layers + 1,) * len(widths), widths[-1], **shared)
        return cls(encoder, decoder, settings.integer("num_vq_embeddings"), settings.integer_or("vq_embed_dim", latent))
