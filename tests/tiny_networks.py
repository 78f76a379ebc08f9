"""Tiny random networks in the layouts that image rewards read."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    SwinConfig,
)
from transformers.models.blip.modeling_blip_text import BlipTextModel

from unmask.rewards.images.networks.detector import Segmenter

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-"


def pictures(count: int, size: tuple[int, int] = (40, 56), seed: int = 0) -> list[Image.Image]:
    """Pictures of random large blocks of colour."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one in small]


def clip_words(folder: Path) -> int:
    """Files of a CLIP tokenizer without merges; returns the size of its vocabulary."""
    units = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({unit: place for place, unit in enumerate(units)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')
    return len(units)


def clip_model(vocabulary: int, seed: int = 0, activation: str = "quick_gelu", heads: int = 2) -> CLIPModel:
    """Random weights of a size at which rewards differ between pictures."""
    torch.manual_seed(seed)
    side = {"num_hidden_layers": 2, "num_attention_heads": heads, "hidden_act": activation}
    text = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": vocabulary, "max_position_embeddings": 77}
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    config = CLIPConfig(
        text_config=side | text | ends,
        vision_config=side | {"hidden_size": 48, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    return spread(CLIPModel(config))


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Larger random weights than fresh ones have: else all outputs are nearly equal."""
    for name, parameter in model.named_parameters():
        if "logit_scale" not in name:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.25)
    return model.eval()


def open_clip_layout(model: CLIPModel) -> dict[str, Tensor]:
    """The names of open_clip: the inverse of the conversion, written on its own."""
    ours = model.state_dict()
    state = {
        "positional_embedding": ours.pop("text_model.embeddings.position_embedding.weight"),
        "text_projection": ours.pop("text_projection.weight").T.contiguous(),
        "visual.proj": ours.pop("visual_projection.weight").T.contiguous(),
        "visual.positional_embedding": ours.pop("vision_model.embeddings.position_embedding.weight"),
        "visual.conv1.weight": ours.pop("vision_model.embeddings.patch_embedding.weight"),
        "attn_mask": torch.zeros(77, 77),
    }
    words = (
        *(("text_model.embeddings.", ""), ("text_model.final_layer_norm", "ln_final"), ("text_model.encoder.", "")),
        *(("vision_model.embeddings.", "visual."), ("vision_model.encoder.", "visual."), ("vision_model.", "visual.")),
        *(("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"), ("layers.", "transformer.resblocks.")),
        *(("layer_norm", "ln_"), ("self_attn", "attn"), ("fc1", "c_fc"), ("fc2", "c_proj")),
    )
    for name, value in ours.items():
        for old, new in words:
            name = name.replace(old, new)
        state[name] = value
    for name in [name for name in state if "q_proj" in name]:
        parts = [state.pop(name.replace("q_proj", f"{one}_proj")) for one in "qkv"]
        state[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return state


def clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP model in Hugging Face layout."""
    folder.mkdir(exist_ok=True)
    clip_model(clip_words(folder), seed).save_pretrained(folder)
    return folder


def aesthetic_head(file: Path, width: int = 24) -> Path:
    """The linear layers, numbered as in the release."""
    torch.manual_seed(1)
    widths = dict(zip((0, 2, 4, 6, 7), ((8, width), (6, 8), (5, 6), (4, 5), (1, 4)), strict=True))
    state = {f"layers.{n}.weight": torch.randn(shape) for n, shape in widths.items()}
    torch.save(state | {f"layers.{n}.bias": torch.randn(shape[0]) for n, shape in widths.items()}, file)
    return file


def bert_words(folder: Path) -> int:
    """Files of a BERT tokenizer of letters."""
    folder.mkdir(exist_ok=True)
    units = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(units) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return len(units)


def blip(vocabulary: int) -> tuple[BlipVisionModel, BlipTextModel]:
    """Vision transformer and text encoder of ImageReward's architecture."""
    torch.manual_seed(2)
    vision = BlipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=16, image_size=32, patch_size=8
    )
    vision.layer_norm_eps = 1e-6
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=24,
        encoder_hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=12,
        max_position_embeddings=64,
        bos_token_id=None,
        sep_token_id=None,
    )
    return spread(BlipVisionModel(vision)), spread(BlipTextModel(text, add_pooling_layer=False))


def released(vision: BlipVisionModel, text: BlipTextModel, head: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of ImageReward's released file: the inverse of the conversion, written on its own."""
    state = {"blip.vision_proj.weight": torch.zeros(3, 32), "blip.text_proj.bias": torch.zeros(3)}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    for name, value in vision.state_dict().items():
        name = name.replace("embeddings.class_embedding", "cls_token")
        name = name.replace("embeddings.position_embedding", "pos_embed")
        name = name.replace("embeddings.patch_embedding", "patch_embed.proj").replace("post_layernorm", "norm")
        name = name.replace("encoder.layers.", "blocks.").replace("layer_norm", "norm")
        name = name.replace("self_attn.projection", "attn.proj").replace("self_attn.qkv", "attn.qkv")
        state[f"blip.visual_encoder.{name}"] = value
    state |= {f"blip.text_encoder.{name}": value for name, value in text.state_dict().items()}
    return state | {f"mlp.{name}": value for name, value in head.items()}


def segmenter(folder: Path, labels: int = 80) -> Path:
    """A Mask2Former in Hugging Face layout."""
    torch.manual_seed(3)
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=12,
        num_labels=labels,
    )
    model = Segmenter(config).eval()
    torch.nn.init.normal_(model.class_predictor.weight, 0, 1.5)
    model.save_pretrained(folder)
    return folder
