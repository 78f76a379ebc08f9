"""Ids of special tokens and of image codes: found in a checkpoint's configuration and tokenizer, never written here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unmask.errors import UserError

MASK_TOKENS = ("<|mdm_mask|>", "<|mask|>", "<|MASK|>")
"""Names of the mask token, for checkpoints whose configuration and tokenizer do not say which one it is."""

END_OF_TURN_TOKENS = ("<|eot_id|>", "<|im_end|>")
"""Names of the token that ends a message."""


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of a checkpoint's special tokens. `pad` may equal `eos`."""

    mask: int
    eos: int
    pad: int
    bos: int | None
    end_of_turn: int | None


@dataclass(frozen=True)
class ImageIds:
    """Where a model's image codes sit in its vocabulary, and the tokens that frame them.

    Attributes:
        offset: id of code 0.
        codes: size of the codebook; code v has id offset + v.
        roles: id of each framing token by its role, e.g. `soi`.
    """

    offset: int
    codes: int
    roles: Mapping[str, int]

    @property
    def vocab(self) -> tuple[int, int]:
        """Rows (start, stop) of the head that image answers are made of."""
        return self.offset, self.offset + self.codes


def special_ids(
    config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: Any, rows: int, where: str
) -> SpecialIds:
    """Ids of the special tokens, from the checkpoint alone.

    mask: config, then the tokenizer's mask token, then a token of a known name; the two must not contradict each other.
    eos and pad: config, then generation_config, then tokenizer; a checkpoint without pad pads with eos. bos:
    generation_config, then tokenizer. End of turn: by name. Where config and tokenizer name different pads (DiffuCoder)
    the config's is taken: pads are hidden, so no result depends on it.

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


def image_ids(
    roles: Mapping[str, str], codes: int, tokenizer: Any, rows: int, where: str, offset: int | None = None
) -> ImageIds:
    """Ids of image codes and framing tokens. Codes start where the tokenizer ends, unless it lists the codes itself.

    Args:
        roles: token of each role.
        codes: size of the codebook.
        tokenizer: a transformers tokenizer.
        rows: of the embedding.
        where: folder, for error messages.
        offset: of code 0, for a tokenizer that was changed after the model was trained; None derives it.

    Raises:
        UserError: codes that do not fit the vocabulary; roles that are missing, not distinct, or among the codes.
    """
    if offset is None:
        listed = len(tokenizer) == rows and rows > codes
        offset = rows - codes if listed else len(tokenizer)
    if not 0 <= offset <= rows - codes:
        raise UserError(
            f"{where}: {codes} image codes from id {offset} on do not fit the vocabulary of {rows} (config.json): "
            "restore the original tokenizer, which decides where they start"
        )
    vocabulary = tokenizer.get_vocab()
    if missing := sorted({token for token in roles.values() if token not in vocabulary}):
        raise UserError(
            f"{where}: the tokenizer has no {', '.join(missing)}: image prompts need it; restore the original"
        )
    found = {role: vocabulary[token] for role, token in roles.items()}
    if max(found.values()) >= offset or len(set(found.values())) < len(found):
        raise UserError(f"{where}: the ids of {', '.join(roles.values())} must be distinct and below {offset}")
    return ImageIds(offset, codes, found)
