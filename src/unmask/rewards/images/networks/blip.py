"""ImageReward (arXiv 2304.05977): BLIP's text encoder reads the prompt and attends to the picture."""

import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unmask.errors import UserError
from unmask.rewards.images.networks.head import linear_head
from unmask.rewards.images.networks.loading import (
    device_of,
    filled,
    once,
    read_tensors,
    require_words,
    tokenizer_of,
)
from unmask.rewards.images.networks.pixels import square

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw score over the authors' data."""
LONGEST = 35
"""Tokens of a prompt; the rest is cut."""

_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_BLOCKS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


def vision_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision transformer of the release (without `blip.visual_encoder.`) under BlipVisionModel's names."""
    found = {}
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        stem, dot, kind = name.rpartition(".")
        if block:
            found[f"encoder.layers.{block[1]}.{_BLOCKS.get(block[2], block[2])}.{block[3]}"] = tensor
        elif name in _VISION:
            found[_VISION[name]] = tensor
        else:
            found[_VISION.get(stem, stem) + dot + kind] = tensor
    return found


class ImageRewardNetwork:
    """Vision transformer, text encoder with cross attention, and head.

    Args:
        state: weights under the names of the release.
        tokenizer: of BERT.
        source: where the weights are from, for messages.
        device, dtype: where and in what it computes.

    Raises:
        UserError: tensors are missing, unknown or do not fit.
    """

    vision_heads, text_heads = 16, 12

    def __init__(self, state: Mapping[str, Tensor], tokenizer: Any, source: str, device: torch.device, dtype: str):
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        known = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
        vision = vision_weights(_below(known, "blip.visual_encoder."))
        text, head = _below(known, "blip.text_encoder."), _below(known, "mlp.")
        parts = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")
        other = [name for name in known if not name.startswith(parts)]
        if other:
            raise UserError(f"{source} has unknown {', '.join(sorted(other)[:4])}: these are not ImageReward's weights")
        try:
            patch, places = vision["embeddings.patch_embedding.weight"], vision["embeddings.position_embedding"]
            self.size = round((places.shape[1] - 1) ** 0.5) * patch.shape[-1]
            vision_config = BlipVisionConfig(
                hidden_size=patch.shape[0],
                intermediate_size=len(vision["encoder.layers.0.mlp.fc1.weight"]),
                num_hidden_layers=_count(vision, "encoder.layers."),
                num_attention_heads=self.vision_heads,
                image_size=self.size,
                patch_size=patch.shape[-1],
                layer_norm_eps=1e-6,
            )
            words, positions = (text[f"embeddings.{one}_embeddings.weight"] for one in ("word", "position"))
            text_config = BlipTextConfig(
                vocab_size=len(words),
                hidden_size=words.shape[1],
                encoder_hidden_size=patch.shape[0],
                intermediate_size=len(text["encoder.layer.0.intermediate.dense.weight"]),
                num_hidden_layers=_count(text, "encoder.layer."),
                num_attention_heads=self.text_heads,
                max_position_embeddings=len(positions),
                bos_token_id=None,
                sep_token_id=None,
                is_decoder=True,  # builds the cross attention; the forward below looks both ways
            )
        except KeyError as error:
            raise UserError(f"{source} has no {error}: these are not ImageReward's weights") from error
        self.vision = filled(BlipVisionModel(vision_config), vision, source, dtype).to(device)
        self.text = filled(BlipTextModel(text_config, add_pooling_layer=False), text, source, dtype).to(device)
        self.head = linear_head(head, words.shape[1], source).to(device)
        self.tokenizer, self.device = tokenizer, device
        self._lock = threading.Lock()

    def scores(self, pictures: "Sequence[Image]", prompts: Sequence[str]) -> Float[Tensor, "n"]:
        """Z-scores of one batch of pictures with their prompts."""
        pixels = torch.from_numpy(np.stack([square(picture, self.size) for picture in pictures]))
        words = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=LONGEST, return_tensors="pt"
        ).to(self.device)
        with self._lock:
            seen = self.vision(pixels.to(self.device, self.vision.dtype)).last_hidden_state
            read = self.text(
                input_ids=words.input_ids,
                attention_mask=words.attention_mask,
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.int64, device=self.device),
                is_decoder=False,
            ).last_hidden_state[:, 0]
            return ((self.head(read.float())[:, 0] - MEAN) / STD).cpu()


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Layers of a transformer."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def load_image_reward(model: str, tokenizer: str, device: str, dtype: str) -> ImageRewardNetwork:
    """The network with the weights in a file.

    Raises:
        UserError: they, or the tokenizer, are not there or broken.
    """
    return _load(model, tokenizer, device_of(device), dtype)


@once
def _load(model: str, tokenizer: str, device: torch.device, dtype: str) -> ImageRewardNetwork:
    from transformers import BertTokenizer

    words = tokenizer_of(BertTokenizer, tokenizer)
    network = ImageRewardNetwork(read_tensors(model), words, model, device, dtype)
    require_words(words, tokenizer, network.text.config.vocab_size, spare=2)  # BLIP adds two that are not used here
    return network
