"""New small models in the formats of LLaDA and MMaDA, with a tokenizer of single characters or words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerFast

from unmask.errors import UserError
from unmask.models.backbone import Backbone
from unmask.models.checkpoint import Model
from unmask.models.families import LLADA, MMADA
from unmask.models.image_files import load_image_tokenizer
from unmask.models.settings import Settings
from unmask.models.special import image_ids, special_ids
from unmask.models.weights import parse_dtype, read_json, write_json

BOS, EOS, MASK, END_OF_TURN = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|eot_id|>"
SPECIAL_TOKENS = (BOS, EOS, MASK, "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN)

CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}" + END_OF_TURN


def new_model(
    alphabet: str | Sequence[str],
    *,
    dim: int,
    layers: int,
    heads: int,
    ffn: int,
    kv_heads: int | None = None,
    theta: float = 10_000.0,
    max_length: int,
    seed: int,
    image_tokenizer: Path | None = None,
    image_slots: int = 0,
) -> Model:
    """A freshly initialised model on the CPU in float32, in LLaDA's official format; in MMaDA's if it makes pictures.

    Embeddings are drawn from N(0, 1) and matrices from N(0, 1 / inputs); those that write into the residual stream are
    divided by sqrt(2 layers), and the head is nearly 0: the first answers are uniform. Models this small learn several
    times faster so than from N(0, 0.02^2) everywhere.

    Args:
        alphabet: every character (or, of a list, every word) becomes one token, in this order; special tokens follow.
        dim, layers, heads, ffn, kv_heads, theta: see `BackboneConfig`; kv_heads None is heads.
        max_length: longest sequence, written to the configuration.
        seed: of the weights; equal seeds give equal weights.
        image_tokenizer: its folder, for a model that makes pictures.
        image_slots: codes of a picture.

    Raises:
        UserError: a repeated character; sizes that do not fit each other; no such image tokenizer.
    """
    codes = 0 if image_tokenizer is None else load_image_tokenizer(image_tokenizer).codes
    family = MMADA if codes else LLADA
    tokenizer = small_tokenizer(alphabet, max_length, tuple(family.roles.values()))
    vocabulary, rows = tokenizer.get_vocab(), len(tokenizer) + codes
    config = {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": dim,
        "embedding_dropout": 0.0,
        "embedding_size": rows,
        "eos_token_id": vocabulary[EOS],
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "cpu",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": vocabulary[MASK],
        "max_sequence_length": max_length,
        "mlp_hidden_size": ffn,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": heads,
        "n_kv_heads": heads if kv_heads is None else kv_heads,
        "n_layers": layers,
        "pad_token_id": vocabulary[EOS],
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": theta,
        "scale_logits": False,
        "torch_dtype": "float32",
        "use_cache": False,
        "vocab_size": rows,
        "weight_tying": False,
    }
    if codes:
        config |= {
            "architectures": ["MMadaModelLM"],
            "codebook_size": codes,
            "llm_vocab_size": len(tokenizer),
            "model_type": "mmada",
            "new_vocab_size": rows,
            "num_new_special_tokens": 0,
            "num_vq_tokens": int(image_slots),
            "tie_word_embeddings": False,
            "w_clip_vit": False,
        }
    shape = family.read(Settings(config, "new model"))
    with torch.device("meta"):
        backbone = Backbone(shape)
    backbone.to_empty(device="cpu")
    _initialise(backbone, seed)
    return Model(
        backbone=backbone.eval(),
        tokenizer=tokenizer,
        family=family,
        config=config,
        ids=special_ids(config, {}, tokenizer, shape.vocab, "new model"),
        files=_files_of(tokenizer),
        source=None,
        stored=dict.fromkeys(family.names(shape), torch.float32),
        images=image_ids(family.roles, codes, tokenizer, rows, "new model") if codes else None,
        image_folder=image_tokenizer,
    )


@torch.no_grad()
def _initialise(backbone: Backbone, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, weight in backbone.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)  # norms: this configuration has no biases
            continue
        spread = 1.0 / math.sqrt(weight.shape[1])
        spread = {"emb.weight": 1.0, "head.weight": 0.02}.get(name, spread)
        if name.endswith((".o.weight", ".down.weight")):
            spread /= (2 * backbone.config.layers) ** 0.5
        weight.normal_(0.0, spread, generator=generator)


def _files_of(tokenizer: Any) -> dict[str, bytes]:
    """The tokenizer's files, such that transformers 4 reads them too."""
    with TemporaryDirectory() as folder:
        # It reads a chat template from tokenizer_config.json only, and does not know the class name of version 5.
        tokenizer.save_pretrained(folder, save_jinja_files=False)
        file = Path(folder) / "tokenizer_config.json"
        settings = read_json(file) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings.pop("backend", None)
        write_json(file, settings)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def small_tokenizer(alphabet: str | Sequence[str], max_length: int, more: Sequence[str] = ()) -> Any:
    """A `PreTrainedTokenizerFast` of single characters, or of words, and LLaDA's special tokens.

    There is no unknown token: what is outside the alphabet raises. The chat template is bos, the contents of the
    messages, `<|eot_id|>`.

    Args:
        alphabet: a text: its characters; a list: words, which blanks separate.
        more: further special tokens.

    Raises:
        UserError: the alphabet is empty or repeats something.
    """
    twice = sorted({one for one in alphabet if alphabet.count(one) > 1})
    if twice or not alphabet:
        raise UserError(f"the alphabet {'repeats ' + ', '.join(map(repr, twice)) if twice else 'is empty'}")
    tokenizer = Tokenizer(models.WordLevel({one: index for index, one in enumerate(alphabet)}))
    words: PreTokenizer = pre_tokenizers.WhitespaceSplit()
    characters: PreTokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.pre_tokenizer = characters if isinstance(alphabet, str) else words
    if isinstance(alphabet, str):
        tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*SPECIAL_TOKENS, *more)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        chat_template=CHAT_TEMPLATE,
    )


@dataclass(frozen=True)
class Scratch:
    """A new small model as a setting: see `new_model`.

    Args:
        dim, layers, heads, ffn, theta: see `BackboneConfig`.
        max_length: longest sequence, written to the configuration.
        dtype: of the weights when they are saved.
    """

    dim: int = 128
    layers: int = 4
    heads: int = 4
    ffn: int = 320
    theta: float = 10_000.0
    max_length: int = 256
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def build(
        self, alphabet: str | Sequence[str], seed: int, image_tokenizer: Path | None = None, image_slots: int = 0
    ) -> Model:
        """The model, with a tokenizer for this alphabet; it makes pictures if there is an image tokenizer."""
        model = new_model(
            alphabet,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            ffn=self.ffn,
            theta=self.theta,
            max_length=self.max_length,
            seed=seed,
            image_tokenizer=image_tokenizer,
            image_slots=image_slots,
        )
        model.stored = dict.fromkeys(model.stored, parse_dtype(self.dtype))
        model.config["torch_dtype"] = self.dtype
        return model
