"""Weights in open_clip's layout as transformers' CLIPModel."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from unmask.errors import UserError
from unmask.rewards.images.networks.loading import filled

_BLOCKS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OTHERS = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of CLIPModel; names that are none of open_clip's stay as they are."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        stem, dot, kind = name.rpartition(".")
        if block:
            side = "vision_model" if block[1] else "text_model"
            found |= _block(f"{side}.encoder.layers.{block[2]}", block[3], tensor)
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif name in _OTHERS:
            found[_OTHERS[name]] = tensor
        elif stem in _OTHERS:
            found[_OTHERS[stem] + dot + kind] = tensor
        elif name != "attn_mask":  # a constant of its code
            found[name] = tensor
    return found


def _block(prefix: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.removeprefix("attn.in_proj_")
        return {f"{prefix}.self_attn.{one}_proj.{kind}": part for one, part in zip("qkv", tensor.chunk(3), strict=True)}
    stem, _, kind = name.rpartition(".")
    return {f"{prefix}.{_BLOCKS.get(stem, stem)}.{kind}": tensor}


def from_open_clip(
    state: Mapping[str, Tensor], heads: tuple[int, int], activation: str, end: int, source: str, dtype: str
) -> Any:
    """A CLIPModel with weights in open_clip's layout; sizes come from the shapes.

    Args:
        state: the weights.
        heads: of the vision and of the text transformer, which no shape tells.
        activation: `gelu`, or `quick_gelu` of OpenAI's weights.
        end: id of the end token, where the text's vector is read.
        source: where they are from, for messages.
        dtype: of the weights in memory.

    Raises:
        UserError: tensors are missing, unknown or do not fit.
    """
    from transformers import CLIPConfig, CLIPModel

    weights = converted(state)
    try:
        vision = _sizes(weights, "vision_model", heads[0], activation)
        text = _sizes(weights, "text_model", heads[1], activation)
        patch = weights["vision_model.embeddings.patch_embedding.weight"]
        patches = len(weights["vision_model.embeddings.position_embedding.weight"]) - 1
        side = round(patches**0.5)
        if side * side != patches:
            raise UserError(f"{source}: {patches} patches make no square")
        vocabulary = len(weights["text_model.embeddings.token_embedding.weight"])
        longest = len(weights["text_model.embeddings.position_embedding.weight"])
        projection = len(weights["visual_projection.weight"])
    except KeyError as error:
        raise UserError(f"{source} has no {error}: it is not in open_clip's layout") from error
    config = CLIPConfig(
        projection_dim=projection,
        vision_config=vision | {"patch_size": patch.shape[-1], "image_size": side * patch.shape[-1]},
        text_config=text
        | {"vocab_size": vocabulary, "max_position_embeddings": longest, "eos_token_id": end, "bos_token_id": end - 1},
    )
    return filled(CLIPModel(config), weights, source, dtype)


def _sizes(weights: Mapping[str, Tensor], side: str, heads: int, activation: str) -> dict[str, Any]:
    layers = {name.split(".")[3] for name in weights if name.startswith(f"{side}.encoder.layers.")}
    inner, width = weights[f"{side}.encoder.layers.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "hidden_act": activation,
    }
