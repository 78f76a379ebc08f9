"""CLIP models (Radford et al. 2021, arXiv 2103.00020)."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unmask.rewards.images.networks.loading import (
    device_of,
    once,
    pretrained,
    read_tensors,
    require_words,
    tokenizer_of,
)
from unmask.rewards.images.networks.open_clip import from_open_clip
from unmask.rewards.images.networks.pixels import square

if TYPE_CHECKING:
    from PIL.Image import Image


class Clip:
    """A CLIP model with its tokenizer: pictures and texts to unit vectors of one space.

    Args:
        model: transformers' CLIPModel, in evaluation mode.
        tokenizer: of CLIP.
        device: to put it on.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device):
        self.model, self.tokenizer, self.device = model.to(device), tokenizer, device
        self.size: int = model.config.vision_config.image_size
        self.longest: int = model.config.text_config.max_position_embeddings
        self.logit_scale = float(model.logit_scale.exp())
        self._lock = threading.Lock()

    def pictures(
        self, pictures: "Sequence[Image]", batch: int, fit: Literal["crop", "pad"] = "crop"
    ) -> Float[Tensor, "n d"]:
        """Unit vectors of pictures, float32 on the CPU."""
        parts = []
        for start in range(0, len(pictures), batch):
            pixels = np.stack([square(picture, self.size, fit) for picture in pictures[start : start + batch]])
            given = torch.from_numpy(pixels).to(self.device, self.model.dtype)
            with self._lock:
                parts.append(_unit(self.model.get_image_features(pixel_values=given)))
        return torch.cat(parts)

    def texts(self, texts: Sequence[str], batch: int) -> Float[Tensor, "n d"]:
        """Unit vectors of texts, float32 on the CPU; equal ones are computed once. Cut at the model's length (77)."""
        distinct = list(dict.fromkeys(texts))
        parts = []
        for start in range(0, len(distinct), batch):
            # Padding to the full length makes shapes, hence rounding, the same in every batch. Pads stand behind the
            # end token that is read, and attention is causal: they change nothing, whatever they are.
            ids = self.tokenizer(
                distinct[start : start + batch],
                padding="max_length",
                truncation=True,
                max_length=self.longest,
                return_tensors="pt",
            ).input_ids.to(self.device)
            with self._lock:
                parts.append(_unit(self.model.get_text_features(input_ids=ids)))
        places = {text: place for place, text in enumerate(distinct)}
        return torch.cat(parts)[[places[text] for text in texts]]


def _unit(features: Any) -> Float[Tensor, "n d"]:
    """Features (a tensor before transformers 5, a record since) at length 1."""
    vectors = getattr(features, "pooler_output", features).float().cpu()
    return vectors / vectors.norm(dim=-1, keepdim=True)


def load_clip(model: str, tokenizer: str, device: str, dtype: str) -> Clip:
    """A CLIP model in Hugging Face layout.

    Args:
        model, tokenizer: folders or hub ids.
        device: auto, cpu, cuda or cuda:N.
        dtype: of its weights.

    Raises:
        UserError: one of them is not there or broken.
    """
    return _clip(model, tokenizer, device_of(device), dtype)


def load_hps(model: str, tokenizer: str, device: str, dtype: str) -> Clip:
    """As `load_clip`, for a file with a ViT-H/14 in open_clip's layout."""
    return _hps(model, tokenizer, device_of(device), dtype)


@once
def _clip(model: str, tokenizer: str, device: torch.device, dtype: str) -> Clip:
    from transformers import CLIPModel, CLIPTokenizer

    words, network = tokenizer_of(CLIPTokenizer, tokenizer), pretrained(CLIPModel, model, dtype)
    require_words(words, tokenizer, network.config.text_config.vocab_size)
    return Clip(network, words, device)


@once
def _hps(model: str, tokenizer: str, device: torch.device, dtype: str) -> Clip:
    from transformers import CLIPTokenizer

    words = tokenizer_of(CLIPTokenizer, tokenizer)
    network = from_open_clip(read_tensors(model), (16, 16), "gelu", words.eos_token_id, model, dtype)
    require_words(words, tokenizer, network.config.text_config.vocab_size)
    return Clip(network, words, device)
