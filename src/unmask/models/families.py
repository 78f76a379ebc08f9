"""Families of checkpoints: how to recognise one, read its configuration and translate its tensor names.

A family is one `Family` record. Every key of a configuration that changes what the model computes is honoured or
refused: a missing key is never filled with a default of the original class (those are GPT-2-like), only with the ones
written here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from unmask.errors import UserError
from unmask.modalities.layouts import DiMOO, Layout, MMaDA
from unmask.models.backbone import BackboneConfig
from unmask.models.settings import MOST_LAYERS, Settings, as_json
from unmask.samplers import Ancestral, Entropy, LowConfidence, MaskGIT, Sampler

FUSED = {"qkv": ("q", "k", "v"), "up_gate": ("up", "gate")}
"""Modules of an official checkpoint that hold several of ours, their rows one after the other."""


_EMERGE = Ancestral(steps=12, guidance=3.5)


def _low_confidence(slots: int, shape: BackboneConfig) -> Sampler:
    """LLaDA's order, greedy, one token per step: in blocks of 32, or of the blocks of a block-causal model (SDAR)."""
    block = math.gcd(slots, shape.block) if shape.block else 32 if slots % 32 == 0 else 0
    return LowConfidence(steps=slots, temperature=0.0, block=block)


def _entropy(slots: int, shape: BackboneConfig) -> Sampler:
    """Dream's, with the settings of its model card."""
    del shape
    return Entropy(steps=slots, temperature=0.2, top_p=0.95, counts="dream")


@dataclass(frozen=True)
class Family:
    """What distinguishes one line of checkpoints.

    Attributes:
        name: of the family.
        model_type, architectures: values in `config.json` that it is recognised by.
        read: from `config.json` to the shape of the backbone; UserError names the key and value that cannot be had.
        layout: official name -> neutral name of every tensor, from the shape and `config.json`; see `names`.
        tied_head: official name of the head, which the file of a tied model may repeat.
        roles: for models that also read and write images: token of each role, see `ImageIds`.
        pictures: how prompts for pictures are laid out.
        codes: size of the image codebook where `config.json` has no `codebook_size`; 0 for models without images.
        answer_pad: token that fills up answers behind their end, if it is not the tokenizer's pad; it ends them, too.
        stale_head: the head of a tied model may differ from the embedding and is ignored; otherwise that is an error.
        text_sampler: how the family's own code draws texts, from the number of slots and the shape of the backbone.
        picture_sampler: how pictures are drawn.
    """

    name: str
    model_type: str
    architectures: tuple[str, ...]
    read: Callable[[Settings], BackboneConfig]
    layout: Callable[[BackboneConfig, Mapping[str, Any]], dict[str, str]]
    tied_head: str
    roles: Mapping[str, str] = field(default_factory=dict)
    pictures: type[Layout] | None = None
    codes: int = 0
    answer_pad: str | None = None
    stale_head: bool = False
    text_sampler: Callable[[int, BackboneConfig], Sampler] = _low_confidence
    picture_sampler: Sampler = _EMERGE

    def names(self, shape: BackboneConfig, config: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Official name -> neutral name of every tensor, one to one.

        A neutral name with a part in `FUSED` stands for several tensors of the backbone: see `unfused`. Without the
        `config.json` the names are those of the family's usual blocks.
        """
        return self.layout(shape, config or {})

    def sampler(self, slots: int, shape: BackboneConfig, answers: Literal["text", "image"]) -> Sampler:
        """How texts or pictures of so many slots are drawn, where nothing else is said."""
        return self.picture_sampler if answers == "image" else self.text_sampler(slots, shape)

    def spare(self, shape: BackboneConfig) -> dict[str, str]:
        """Tensors that a file may hold in addition, and which repeat another one: the head of a tied model."""
        return {self.tied_head: "emb.weight"} if shape.tie else {}


def unfused(neutral: str) -> tuple[str, ...]:
    """The tensors of the backbone that one neutral name stands for, in the order of their rows."""
    *path, module, kind = neutral.split(".")
    return tuple(".".join((*path, part, kind)) for part in FUSED.get(module, (module,)))


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
        f"{where}: model_type {as_json(model_type)} with architectures {as_json(architectures)} is not supported; "
        f"supported: {supported}"
    )


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def _heads(settings: Settings, heads: str, kv_heads: str, shared: bool = False) -> tuple[int, int]:
    """Query heads and key heads; null key heads are as many as query heads, or one if they are `shared`."""
    query = settings.integer(heads)
    key = settings.integer_or(kv_heads, 1 if shared else query)
    if query % key:
        raise settings.error(kv_heads, f"a divisor of {heads}, which is {query}")
    return query, key


# ------------------------------------------------------------------------------------- LLaDA, MMaDA and Lumina-DiMOO


def _read_llada(settings: Settings) -> BackboneConfig:
    """LLaDA's configuration. Dropouts, affine flags and `multi_query_attention` may be missing: 0, true and null."""
    gated = settings.choice("block_type", "llama", "sequential") == "llama"
    activation = settings.choice("activation_type", "silu", "gelu", "relu", *([] if gated else ["swiglu"]))
    settings.require("layer_norm_type", "rms")
    settings.require("rope", True)
    settings.require("alibi", False)
    settings.require_if_given("layer_norm_with_affine", True)
    settings.require_if_given("attention_layer_norm_with_affine", True)
    for dropout in ("attention_dropout", "embedding_dropout", "residual_dropout"):
        settings.require_if_given(dropout, 0.0, 0)
    dim, layers = settings.integer("d_model"), settings.integer("n_layers", MOST_LAYERS)
    if layers % settings.integer("block_group_size"):
        raise settings.error("block_group_size", f"a divisor of n_layers, which is {layers}")
    settings.require_if_given("multi_query_attention", None, False, True)
    shared = settings.values.get("multi_query_attention")
    if dim % settings.integer("n_heads") or dim // settings.integer("n_heads") % 2:
        raise settings.error("n_heads", f"such that d_model / n_heads is even, and d_model is {dim}")
    heads, kv_heads = _heads(settings, "n_heads", "n_kv_heads", bool(shared))
    if shared is not None and kv_heads != (1 if shared else heads):
        raise settings.error("multi_query_attention", f"null or in accord with n_kv_heads, which is {kv_heads}")
    ffn = settings.get("mlp_hidden_size")
    ffn = settings.integer("mlp_ratio") * dim if ffn is None else settings.integer("mlp_hidden_size")
    if activation == "swiglu":
        if ffn % 2:
            raise settings.error("mlp_hidden_size", "even, because swiglu splits it")
        activation, gated, ffn = "silu", True, ffn // 2
    bias = settings.boolean("include_bias")
    norm_bias = bias if settings.get("bias_for_layer_norm") is None else settings.boolean("bias_for_layer_norm")
    return BackboneConfig(
        vocab=settings.integer_or("embedding_size", settings.integer("vocab_size")),
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim // heads,
        ffn=ffn,
        eps=settings.number("rms_norm_eps"),
        theta=settings.number("rope_theta"),
        activation=activation,  # pyright: ignore[reportArgumentType]
        gated=gated,
        qkv_bias=settings.boolean("include_qkv_bias"),
        bias=bias,
        norm_bias=norm_bias,
        qk_norm="full" if settings.boolean("attention_layer_norm") else "none",
        rope_fp32=settings.boolean("rope_full_precision"),
        tie=settings.boolean("weight_tying"),
        scale_logits=settings.boolean("scale_logits"),
        emb_scale=settings.boolean("input_emb_norm"),
    )


def _read_mmada(settings: Settings) -> BackboneConfig:
    """LLaDA's keys, and those that count image tokens; these must agree with the vocabulary."""
    shape = _read_llada(settings)
    settings.require_if_given("w_clip_vit", False)
    settings.require_if_given("tie_word_embeddings", False, *([True] if shape.tie else []))
    rows, codes = settings.optional_integer("new_vocab_size"), settings.integer("codebook_size")
    if rows not in (None, shape.vocab):
        raise settings.error("new_vocab_size", f"null or the number of embeddings, which is {shape.vocab}")
    if codes >= shape.vocab:
        raise settings.error("codebook_size", f"smaller than the vocabulary, which is {shape.vocab}")
    return shape


def _llada_layout(shape: BackboneConfig, config: Mapping[str, Any]) -> dict[str, str]:
    # The block's `ff_out` and the head's share a leaf name, hence full paths.
    top, norm, plain = "model.transformer.", _kinds(shape.norm_bias), _kinds(shape.bias)
    qkv = _kinds(shape.bias or shape.qkv_bias)
    leaves = {"attn_norm": ("attn_norm", norm)}
    if config.get("block_type") == "sequential":
        leaves["att_proj"] = "qkv", qkv
    else:
        leaves |= {f"{one}_proj": (one, qkv) for one in "qkv"}
    if shape.qk_norm != "none":
        leaves |= {"q_norm": ("q_norm", norm), "k_norm": ("k_norm", norm)}
    leaves |= {"attn_out": ("o", plain), "ff_norm": ("mlp_norm", norm)}
    if config.get("block_type") == "sequential":
        leaves["ff_proj"] = ("up_gate" if shape.gated else "up"), plain
    else:
        leaves |= {"ff_proj": ("gate", plain), "up_proj": ("up", plain)}
    leaves["ff_out"] = "down", plain

    names = {f"{top}wte.weight": "emb.weight"} | {f"{top}ln_f.{kind}": f"norm.{kind}" for kind in norm}
    group = config.get("block_group_size", 1)
    for layer in range(shape.layers):
        place = f"blocks.{layer}" if group == 1 else f"block_groups.{layer // group}.{layer % group}"
        for theirs, (ours, kinds) in leaves.items():
            names |= {f"{top}{place}.{theirs}.{kind}": f"blocks.{layer}.{ours}.{kind}" for kind in kinds}
    if not shape.tie:
        names |= {f"{top}ff_out.{kind}": f"head.{kind}" for kind in plain}
    return names


# ---------------------------------------------------------------------------------- Dream, DiffuCoder, SDAR and TraDo


def _read_qwen(settings: Settings) -> BackboneConfig:
    """What Dream (Qwen2 blocks) and SDAR (Qwen3 blocks) share. `tie_word_embeddings` may be missing: false."""
    activation = settings.choice("hidden_act", "silu", "gelu", "relu")
    settings.require_if_given("attention_dropout", 0.0, 0)
    settings.require_if_given("use_sliding_window", False, None)
    settings.require_if_given("tie_word_embeddings", False, True)
    dim, vocab = settings.integer("hidden_size"), settings.integer("vocab_size")
    heads, kv_heads = _heads(settings, "num_attention_heads", "num_key_value_heads")
    pad = settings.optional_integer("pad_token_id")
    if pad is not None and pad >= vocab:
        raise settings.error("pad_token_id", f"null or below vocab_size, which is {vocab}")
    return BackboneConfig(
        vocab=vocab,
        dim=dim,
        layers=settings.integer("num_hidden_layers", MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim // heads,
        ffn=settings.integer("intermediate_size"),
        eps=settings.number("rms_norm_eps"),
        theta=_rope_theta(settings),
        activation=activation,  # pyright: ignore[reportArgumentType]
        rope_fp32=False,
        tie=settings.values.get("tie_word_embeddings", False),
        count_real=True,
        padding_row=pad,
    )


def _rope_theta(settings: Settings) -> float:
    """`rope_theta`, or what transformers 5 writes in `rope_parameters`; any scaling of the frequencies is refused."""
    for key in ("rope_scaling", "rope_parameters"):
        scaling = settings.values.get(key)
        kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else scaling
        if kind not in (None, "default"):
            raise settings.error(key, "null or of type default: scaled rotations are not supported")
    inner = settings.values.get("rope_parameters")
    if settings.values.get("rope_theta") is None and isinstance(inner, dict):
        return Settings(inner, f"{settings.where}: rope_parameters").number("rope_theta")
    return settings.number("rope_theta")


def _read_dream(settings: Settings) -> BackboneConfig:
    shape = _read_qwen(settings)
    if shape.dim % shape.heads or shape.head_dim % 2:
        raise settings.error("num_attention_heads", f"such that {shape.dim} (hidden_size) divided by it is even")
    settings.require_if_given("head_dim", shape.head_dim, None)
    return replace(shape, qkv_bias=True, shift=True)


def _read_sdar(settings: Settings) -> BackboneConfig:
    shape, head_dim = _read_qwen(settings), settings.integer("head_dim")
    if head_dim % 2:
        raise settings.error("head_dim", "even")
    settings.require_if_given("attention_bias", False, True)  # may be missing: false
    bias = settings.values.get("attention_bias", False)
    block = settings.integer("block_size")
    return replace(shape, head_dim=head_dim, qkv_bias=bias, o_bias=bias, qk_norm="head", block=block)


def _qwen_layout(shape: BackboneConfig, _config: Mapping[str, Any]) -> dict[str, str]:
    qkv, out, only = _kinds(shape.qkv_bias), _kinds(shape.o_bias), _kinds(False)
    leaves = {"input_layernorm": ("attn_norm", only)}
    leaves |= {f"self_attn.{one}_proj": (one, qkv) for one in "qkv"} | {"self_attn.o_proj": ("o", out)}
    if shape.qk_norm != "none":
        leaves |= {"self_attn.q_norm": ("q_norm", only), "self_attn.k_norm": ("k_norm", only)}
    leaves |= {f"mlp.{one}_proj": (one, only) for one in ("gate", "up", "down")}
    leaves["post_attention_layernorm"] = "mlp_norm", only
    names = {"model.embed_tokens.weight": "emb.weight"}
    for layer in range(shape.layers):
        for theirs, (ours, kinds) in leaves.items():
            names |= {f"model.layers.{layer}.{theirs}.{kind}": f"blocks.{layer}.{ours}.{kind}" for kind in kinds}
    names["model.norm.weight"] = "norm.weight"
    return names if shape.tie else names | {"lm_head.weight": "head.weight"}


# ----------------------------------------------------------------------------------------------------------- records

_LLADA_HEAD, _QWEN_HEAD = "model.transformer.ff_out.weight", "lm_head.weight"
_MMADA_ROLES = ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg", "pad", "r2i")
_DIMOO_ROLES = {
    "image": "<IMAGE>",
    "image_end": "</IMAGE>",
    "unconditional": "<uncondition>",
    "answer": "<answer>",
    "answer_end": "</answer>",
    "row_end": "<|reserved_token_0|>",
}

LLADA = Family("llada", "llada", ("LLaDAModelLM",), _read_llada, _llada_layout, _LLADA_HEAD)
DIMOO = Family(
    *("lumina-dimoo", "llada", ("LLaDAForMultiModalGeneration",), _read_llada, _llada_layout, _LLADA_HEAD),
    roles=_DIMOO_ROLES,
    pictures=DiMOO,
    codes=8192,
    answer_pad="<|reserved_token_254|>",
    picture_sampler=MaskGIT(steps=64, guidance=4.0, annealing="none"),
)
MMADA = Family(
    *("mmada", "mmada", ("MMadaModelLM", "LLaDAModelLM"), _read_mmada, _llada_layout, _LLADA_HEAD),
    roles={role: f"<|reserved_token_{index}|>" for index, role in enumerate(_MMADA_ROLES)},
    pictures=MMaDA,
    codes=8192,
)
DREAM = Family(
    *("dream", "Dream", ("DreamModel",), _read_dream, _qwen_layout, _QWEN_HEAD),
    stale_head=True,
    text_sampler=_entropy,
)
SDAR = Family("sdar", "sdar", ("SDARForCausalLM",), _read_sdar, _qwen_layout, _QWEN_HEAD, stale_head=True)

FAMILIES = (LLADA, DIMOO, MMADA, DREAM, SDAR)
"""Every family that can be loaded."""
