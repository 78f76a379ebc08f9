"""Families of checkpoints: how to recognise one, read its configuration and translate its tensor names.

A family is one `Family` record. Every key of a configuration that changes what the model computes is honoured or
refused: a missing key is never filled with a default of the original class (those are GPT-2-like), only with the ones
written here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unmask.errors import UserError
from unmask.models.backbone import BackboneConfig

MASK_TOKENS = ("<|mdm_mask|>", "<|mask|>", "<|MASK|>")
"""Names of the mask token, for checkpoints whose configuration and tokenizer do not say which one it is."""

END_OF_TURN_TOKENS = ("<|eot_id|>", "<|im_end|>")
"""Names of the token that ends a message."""


class Settings:
    """A parsed JSON object whose values are checked as they are read.

    Args:
        values: the object.
        where: the file, for error messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def get(self, key: str) -> Any:
        """The value of a key that must be there."""
        if key not in self.values:
            raise UserError(f"{self.where}: key {key!r} is missing; take it from the checkpoint's original config.json")
        return self.values[key]

    def error(self, key: str, wanted: str) -> UserError:
        """The error for a value that cannot be used."""
        return UserError(f"{self.where}: {key} is {self.values.get(key)!r}, but must be {wanted}")

    def integer(self, key: str) -> int:
        """A positive integer."""
        value = self.get(key)
        if type(value) is not int or value < 1:
            raise self.error(key, "a positive integer")
        return value

    def integer_or(self, key: str, default: int) -> int:
        """A positive integer; null means `default`."""
        return default if self.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """A positive number."""
        value = self.get(key)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.error(key, "a positive number")
        return float(value)

    def boolean(self, key: str) -> bool:
        """true or false."""
        value = self.get(key)
        if type(value) is not bool:
            raise self.error(key, "true or false")
        return value

    def require(self, key: str, *supported: Any) -> None:
        """Refuses every value but the supported ones."""
        value = self.get(key)
        if not any(value == one and type(value) is type(one) for one in supported):
            raise self.error(key, " or ".join(map(_json, supported)) + ": nothing else is supported")

    def require_if_given(self, key: str, *supported: Any) -> None:
        """The same for a key that may be missing: then it has the first supported value."""
        if key in self.values:
            self.require(key, *supported)


@dataclass(frozen=True)
class Family:
    """What distinguishes one line of checkpoints.

    Attributes:
        name: of the family.
        model_type, architectures: values in `config.json` that it is recognised by.
        read: from `config.json` to the shape of the backbone; UserError names the key and value that cannot be had.
        names: official name -> neutral name of every tensor, one to one.
    """

    name: str
    model_type: str
    architectures: tuple[str, ...]
    read: Callable[[Settings], BackboneConfig]
    names: Callable[[BackboneConfig], dict[str, str]]


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of a checkpoint's special tokens. `pad` may equal `eos`."""

    mask: int
    eos: int
    pad: int
    bos: int | None
    end_of_turn: int | None


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family of a configuration.

    Raises:
        UserError: unknown; the message names both values and what is supported.
    """
    settings = Settings(config, where)
    model_type, architectures = settings.get("model_type"), settings.get("architectures")
    known = architectures if isinstance(architectures, list) else []
    for family in FAMILIES:
        if model_type == family.model_type and any(name in family.architectures for name in known):
            return family
    supported = "; ".join(f"{family.model_type} with {' or '.join(family.architectures)}" for family in FAMILIES)
    raise UserError(
        f"{where}: model_type {_json(model_type)} with architectures {_json(architectures)} is not supported; "
        f"supported: {supported}"
    )


def special_ids(
    config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: Any, rows: int, where: str
) -> SpecialIds:
    """Ids of the special tokens, from the checkpoint alone.

    mask: config, then the tokenizer's mask token, then a token of a known name; the two must not contradict each other.
    eos and pad: config, then generation_config, then tokenizer; a checkpoint without pad pads with eos. bos:
    generation_config, then tokenizer. End of turn: by name.

    Args:
        config, generation: contents of `config.json` and `generation_config.json`.
        tokenizer: a transformers tokenizer.
        rows: of the embedding: every id is below.
        where: folder, for error messages.

    Raises:
        UserError: no mask or eos to be found, a contradiction, or an id outside the embedding.
    """
    vocabulary = tokenizer.get_vocab()

    def checked(value: Any, key: str) -> int | None:
        if isinstance(value, list):  # generation configs may list several end tokens: the first is the main one
            value = value[0] if value else None
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < rows:
            raise UserError(f"{where}: {key} is {value!r}, but must be an id from 0 to {rows - 1} (config.json)")
        return value

    def first(key: str, *sources: Any) -> int | None:
        found = (checked(source, key) for source in sources)
        return next((value for value in found if value is not None), None)

    def named(names: tuple[str, ...]) -> int | None:
        return next((vocabulary[name] for name in names if name in vocabulary), None)

    said = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else named(MASK_TOKENS)
    mask = first("mask_token_id", config.get("mask_token_id"), said)
    if mask is None:
        raise UserError(f"{where}: no mask token: set mask_token_id in config.json")
    if said is not None and mask != said:
        token = tokenizer.convert_ids_to_tokens(said)
        raise UserError(
            f"{where}: mask_token_id is {mask} in config.json, but the tokenizer's {token} is {said}; correct one"
        )
    eos = first("eos_token_id", config.get("eos_token_id"), generation.get("eos_token_id"), tokenizer.eos_token_id)
    if eos is None:
        raise UserError(f"{where}: no end token: set eos_token_id in config.json")
    pad = first("pad_token_id", config.get("pad_token_id"), generation.get("pad_token_id"), tokenizer.pad_token_id)
    bos = first("bos_token_id", generation.get("bos_token_id"), tokenizer.bos_token_id)
    return SpecialIds(mask, eos, eos if pad is None else pad, bos, named(END_OF_TURN_TOKENS))


def _json(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}[value] if value is None or type(value) is bool else repr(value)


# ------------------------------------------------------------------------------------------------------------- LLaDA


def _read_llada(settings: Settings) -> BackboneConfig:
    """LLaDA's configuration. Dropouts, affine flags and `multi_query_attention` may be missing: 0, true and null."""
    settings.require("block_type", "llama")
    settings.require("block_group_size", 1)
    settings.require("activation_type", "silu")
    settings.require("layer_norm_type", "rms")
    settings.require("rope", True)
    settings.require("alibi", False)
    bias = settings.boolean("include_bias")
    settings.require("bias_for_layer_norm", *([False] if bias else [False, None]))  # null follows include_bias
    settings.require_if_given("layer_norm_with_affine", True)
    settings.require_if_given("attention_layer_norm_with_affine", True)
    settings.require_if_given("multi_query_attention", None, False)
    for dropout in ("attention_dropout", "embedding_dropout", "residual_dropout"):
        settings.require_if_given(dropout, 0.0, 0)
    dim, heads, vocab = settings.integer("d_model"), settings.integer("n_heads"), settings.integer("vocab_size")
    if dim % heads or dim // heads % 2:
        raise settings.error("n_heads", f"such that d_model / n_heads is even, and d_model is {dim}")
    kv_heads = settings.integer_or("n_kv_heads", heads)
    if heads % kv_heads:
        raise settings.error("n_kv_heads", f"a divisor of n_heads, which is {heads}")
    return BackboneConfig(
        vocab=settings.integer_or("embedding_size", vocab),
        dim=dim,
        layers=settings.integer("n_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim // heads,
        ffn=settings.integer("mlp_hidden_size"),
        eps=settings.number("rms_norm_eps"),
        theta=settings.number("rope_theta"),
        qkv_bias=settings.boolean("include_qkv_bias"),
        bias=bias,
        qk_norm="full" if settings.boolean("attention_layer_norm") else "none",
        rope_fp32=settings.boolean("rope_full_precision"),
        tie=settings.boolean("weight_tying"),
        scale_logits=settings.boolean("scale_logits"),
        emb_scale=settings.boolean("input_emb_norm"),
    )


def _llada_names(config: BackboneConfig) -> dict[str, str]:
    # The block's `ff_out` and the head's share a leaf name, hence full paths.
    top, with_bias = "model.transformer.", (".weight", ".bias") if config.bias else (".weight",)
    qkv = (".weight", ".bias") if config.bias or config.qkv_bias else (".weight",)
    leaves = {
        "attn_norm": ("attn_norm", (".weight",)),
        "q_proj": ("q", qkv),
        "k_proj": ("k", qkv),
        "v_proj": ("v", qkv),
        "attn_out": ("o", with_bias),
        "ff_norm": ("mlp_norm", (".weight",)),
        "ff_proj": ("gate", with_bias),
        "up_proj": ("up", with_bias),
        "ff_out": ("down", with_bias),
    }
    if config.qk_norm != "none":
        leaves |= {"q_norm": ("q_norm", (".weight",)), "k_norm": ("k_norm", (".weight",))}
    names = {f"{top}wte.weight": "emb.weight", f"{top}ln_f.weight": "norm.weight"}
    for layer in range(config.layers):
        for theirs, (ours, kinds) in leaves.items():
            names |= {f"{top}blocks.{layer}.{theirs}{kind}": f"blocks.{layer}.{ours}{kind}" for kind in kinds}
    if not config.tie:
        names |= {f"{top}ff_out{kind}": f"head{kind}" for kind in with_bias}
    return names


LLADA = Family("llada", "llada", ("LLaDAModelLM",), _read_llada, _llada_names)

FAMILIES = (LLADA,)
"""Every family that can be loaded."""
