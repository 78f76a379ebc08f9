"""Checkpoints in Hugging Face layout, read and written under their official names."""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unmask.errors import UserError
from unmask.modalities.base import Modality
from unmask.modalities.codes import Codes
from unmask.modalities.image import Image
from unmask.modalities.layouts import Layout
from unmask.modalities.reading import PictureReader
from unmask.modalities.text import Text, encoded
from unmask.models.backbone import Backbone, BackboneConfig
from unmask.models.families import Family, family_of, unfused
from unmask.models.image_files import load_image_tokenizer
from unmask.models.image_tokenizer import ImageTokenizer
from unmask.models.location import COMPANIONS, CONFIG, IMAGE_TOKENIZER, METADATA, locate
from unmask.models.policy import BackbonePolicy
from unmask.models.settings import Settings
from unmask.models.special import ImageIds, SpecialIds, image_ids, special_ids
from unmask.models.weights import (
    BIN_INDEX,
    INDEX,
    dtype_name,
    first_few,
    parse_dtype,
    read_json,
    read_weights,
    write_json,
    write_weights,
)
from unmask.rewards.base import Reward
from unmask.samplers.base import Sampler


@dataclass
class Model:
    """A checkpoint in memory.

    Attributes:
        backbone: the transformer.
        tokenizer: a transformers `PreTrainedTokenizerFast`.
        family: its record in `families.py`.
        config: `config.json` as it was read, unknown keys included.
        ids: special tokens.
        files: what belongs to the checkpoint beside its weights, by file name, byte for byte: saving does not need the
            source any more.
        source: the folder it was read from; None if it was never stored.
        stored: dtype of each tensor in the source, by official name; what `save` writes unless told otherwise.
        metadata: content of `unmask.json`, our own notes, read and written with the checkpoint.
        images: where image codes sit in the vocabulary; None for a text model.
        image_folder: with the image tokenizer's files; None where there is none.
        answers: what the model is asked for; see `answering`.
    """

    backbone: Backbone
    tokenizer: Any
    family: Family
    config: dict[str, Any]
    ids: SpecialIds
    files: dict[str, bytes]
    source: Path | None
    stored: dict[str, torch.dtype]
    metadata: dict[str, Any] = field(default_factory=dict)
    images: ImageIds | None = None
    image_folder: Path | None = None
    answers: Literal["text", "image"] = "text"

    @property
    def vocab(self) -> int:
        """Rows of the head: may exceed the tokenizer."""
        return self.backbone.config.vocab

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    def answering(self, kind: Literal["text", "image"]) -> "Model":
        """This model, asked for texts or for pictures; the weights are shared.

        Raises:
            UserError: it has no image side.
        """
        if kind == "image":
            _ = self._pictures
        if kind == self.answers:
            return self
        _ = self.codes  # which the other one shares
        other = copy(self)
        other.answers = kind
        other.__dict__.pop("modality", None)
        return other

    @cached_property
    def codes(self) -> Codes:
        """Codes of pictures, through the image tokenizer."""
        return Codes(lambda: self.image_tokenizer)

    @cached_property
    def modality(self) -> Modality:
        """How prompts and answers of this model are encoded."""
        if self.answers == "image":
            images, layout = self._pictures
            return Image(layout, images.vocab, self.ids.mask, self.grid, self.codes)
        texts, reader = self.vocab, None
        if self.images is not None:
            texts = self.images.offset
            if self.family.pictures is not None:
                reader = PictureReader(self._pictures[1], self.images.offset, self._square, self.codes)
        block = self.backbone.config.block
        pad = self.ids.pad if self._answer_pad is None else self._answer_pad
        return Text(self.tokenizer, self.vocab, self.ids.mask, pad, self._ends, texts, reader, block)

    @property
    def _pictures(self) -> tuple[ImageIds, Layout]:
        if self.images is None or self.family.pictures is None:
            raise UserError(f"{self.source or 'the model'} is of family {self.family.name}, which makes no pictures")
        ids = self.ids
        layout = self.family.pictures(partial(encoded, self.tokenizer), self.images.roles, ids.bos, ids.eos, ids.pad)
        return self.images, layout

    @property
    def _ends(self) -> list[int]:
        return [one for one in (self.ids.eos, self.ids.end_of_turn, self._answer_pad) if one is not None]

    @property
    def _answer_pad(self) -> int | None:
        token = self.family.answer_pad
        return None if token is None else self.tokenizer.get_vocab().get(token)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width of the model's pictures in codes, as `unmask.json` says; None where it does not."""
        said = self.metadata.get("image_grid")
        if said is None:
            return None
        if not (isinstance(said, list) and len(said) == 2 and all(type(n) is int and 0 < n <= 1024 for n in said)):
            raise UserError(f"{self.source}/{METADATA}: image_grid must be [height, width] in codes, not {said!r:.60}")
        return said[0], said[1]

    @property
    def _square(self) -> tuple[int, int] | None:
        """The grid, or the square of as many codes as `config.json` says."""
        count = self.config.get("num_vq_tokens")
        side = math.isqrt(count) if type(count) is int and count > 0 else 0
        return self.grid or ((side, side) if side and side * side == count else None)

    @property
    def slots(self) -> int | None:
        """Answer slots of the model's own pictures; None where it is asked for texts or does not say."""
        if self.answers == "text":
            return None
        count = self.config.get("num_vq_tokens")
        return math.prod(self.grid) if self.grid else count if type(count) is int and count > 0 else None

    def sampler(self, slots: int) -> Sampler:
        """How the family's own code draws what the model is asked for."""
        return self.family.sampler(slots, self.backbone.config, self.answers)

    @cached_property
    def image_tokenizer(self) -> ImageTokenizer | None:
        """Pictures to codes and back, in float32 on the model's device, read when first asked for; None without one.

        Raises:
            UserError: files that are broken; a codebook of another size than the model's.
        """
        if self.image_folder is None:
            return None
        tokenizer = load_image_tokenizer(self.image_folder).to(self.device)
        if self.images is not None and tokenizer.codes != self.images.codes:
            raise UserError(
                f"{self.image_folder} has {tokenizer.codes} codes, but the model has {self.images.codes}: "
                "take the image tokenizer that belongs to it"
            )
        return tokenizer

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Official name -> tensors of the backbone, for every tensor of the checkpoint's files."""
        shape = self.backbone.config
        every = self.family.names(shape, self.config) | self.family.spare(shape)
        return {theirs: unfused(ours) for theirs, ours in every.items() if theirs in self.stored}

    def policy(
        self,
        forward: Callable[..., Tensor] | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        ban: bool = True,
    ) -> BackbonePolicy:
        """The model as algorithms see it.

        Args:
            forward: the backbone, or what wraps it (adapters, DDP).
            autocast: a fresh context around every forward.
            ban: keep ids that can never be an answer out of the softmax; False is for parity with code that does not.
        """
        banned = self.modality.banned.to(self.device) if ban and bool(self.modality.banned.any()) else None
        return BackbonePolicy(forward or self.backbone, self.modality.vocab, self.ids.mask, banned, autocast)

    def reading(self, reward: Reward) -> Reward:
        """A reward that also knows the end and mask tokens of this model."""
        convert = self.tokenizer.convert_ids_to_tokens
        return reward.for_tokens(tuple(convert(sorted(set(self._ends)))), (convert(self.ids.mask),))

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes the checkpoint in its official format, whole or not at all.

        An existing model folder is replaced; files in it that are no part of a model are kept.

        Args:
            out: folder.
            dtype: of the weights; None is the source's.
            state: weights to write instead of the backbone's own, by neutral name (merged adapters).

        Raises:
            UserError: `out` is a file, or a folder that holds something else than a model; unknown dtype.
        """
        out = Path(out).expanduser().resolve()
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file: name a folder to save the model in")
        if out.is_dir() and any(out.iterdir()) and not (out / CONFIG).is_file():
            raise UserError(f"{out} is a folder that holds something else than a model: name another one")
        names = self.names
        tensors = self.backbone.state_dict() if state is None else state
        if odd := tensors.keys() ^ {one for ours in names.values() for one in ours}:
            raise ValueError(f"the state to save is not that of a plain backbone: {first_few(odd)}")
        asked = None if dtype is None else parse_dtype(dtype)
        dtypes = dict.fromkeys(names, asked) if asked is not None else self.stored
        config = self.config
        if asked is not None:
            config = config | {key: dtype_name(asked) for key in ("torch_dtype", "dtype") if key in config}

        partial = out.with_name(f".{out.name}.saving-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            write_weights(partial, names, tensors, dtypes)
            for name, content in self.files.items():
                (partial / name).write_bytes(content)
            if CONFIG not in self.files or config != read_json(partial / CONFIG):
                write_json(partial / CONFIG, config)
            notes = self.metadata if self.images is None else self.metadata | {"image_offset": self.images.offset}
            if notes:
                write_json(partial / METADATA, notes)
            if self.image_folder is not None:
                shutil.copytree(self.image_folder, partial / IMAGE_TOKENIZER)
            _replace(out, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def load(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    image_tokenizer: str | os.PathLike[str] | None = None,
    image_offset: int | None = None,
) -> Model:
    """Reads a checkpoint.

    Args:
        source: folder in Hugging Face layout, run directory (its `model/` is read), `builtin:NAME`, or hub id. What
            looks like a local path never goes to the hub.
        device: of the weights; "meta" reads everything but them.
        dtype: of the weights, e.g. "float32"; None is the one they are stored in.
        revision: branch, tag or commit of a hub id.
        image_tokenizer: its folder; None is `image_tokenizer/` beside the weights, if it is there.
        image_offset: id of image code 0, where the tokenizer has grown since the model was trained; None derives it.

    Returns:
        The model in eval mode (nothing in it depends on the mode), parameters trainable.

    Raises:
        UserError: in one line, what is missing, unknown, contradictory or broken, and in which file.
    """
    wanted = None if dtype is None else parse_dtype(dtype)
    folder = locate(source, revision)
    config = read_json(folder / CONFIG)
    about = outline(folder)
    family, shape, metadata = about.family, about.shape, about.metadata
    tokenizer = _read_tokenizer(folder)
    if len(tokenizer) > shape.vocab:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, but config.json only {shape.vocab}")
    generation = folder / "generation_config.json"
    generated = read_json(generation) if generation.is_file() else {}
    ids = special_ids(config, generated, tokenizer, shape.vocab, str(folder))
    images = None
    if family.codes:
        codes = config.get("codebook_size", family.codes)
        images = image_ids(family.roles, codes, tokenizer, shape.vocab, str(folder), image_offset)
        if metadata.get("image_offset", images.offset) != images.offset:
            raise UserError(
                f"{folder}: image codes start at {images.offset} by the tokenizer, but at {metadata['image_offset']} "
                f"by {METADATA}: restore the tokenizer that the model was saved with"
            )

    with torch.device("meta"):
        backbone = Backbone(shape)
    names = {theirs: unfused(ours) for theirs, ours in family.names(shape, config).items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in backbone.named_parameters()}
    state, stored = read_weights(
        folder, names, family.spare(shape), shapes, torch.device(device), wanted, family.stale_head
    )
    backbone.load_state_dict(state, assign=True)
    beside = folder / IMAGE_TOKENIZER if image_tokenizer is None else Path(image_tokenizer).expanduser()
    if image_tokenizer is not None and images is None:
        raise UserError(f"{folder} is of family {family.name}, which has no pictures: leave out image_tokenizer")
    if image_tokenizer is not None and not beside.is_dir():
        raise UserError(f"{beside} is not there: name the folder of an image tokenizer")
    return Model(
        backbone=backbone.eval(),
        tokenizer=tokenizer,
        family=family,
        config=config,
        ids=ids,
        files={file.name: file.read_bytes() for pattern in (CONFIG, *COMPANIONS) for file in folder.glob(pattern)},
        source=folder,
        stored=stored,
        metadata=metadata,
        images=images,
        image_folder=beside if beside.is_dir() else None,
        answers=_answers(metadata, images, folder),
    )


def _answers(metadata: Mapping[str, Any], images: ImageIds | None, folder: Path) -> Literal["text", "image"]:
    said = metadata.get("answers", "text")
    if said not in (["text"] if images is None else ["text", "image"]):
        raise UserError(
            f"{folder / METADATA}: answers is {said!r:.60}, but must be text, or image where there are codes"
        )
    return said


@dataclass(frozen=True)
class Outline:
    """What is known of a model before its tokenizer and weights are read.

    Args:
        family, shape: from `config.json`.
        metadata: content of `unmask.json`; empty where there is none.
    """

    family: Family
    shape: BackboneConfig
    metadata: dict[str, Any]


def outline(source: str | os.PathLike[str], revision: str | None = None) -> Outline:
    """The outline of a model; takes and raises what `load` does."""
    folder = locate(source, revision)
    config, where = read_json(folder / CONFIG), str(folder / CONFIG)
    family = family_of(config, where)
    notes = folder / METADATA
    return Outline(family, family.read(Settings(config, where)), read_json(notes) if notes.is_file() else {})


# -------------------------------------------------------------------------------------------------------------- read


def _read_tokenizer(folder: Path) -> Any:
    """From `tokenizer.json`; Dream has only the vocabulary and merges of Qwen2's tokenizer, whose class is Python."""
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    file, vocabulary = folder / "tokenizer.json", folder / "vocab.json"
    if not file.is_file() and not (vocabulary.is_file() and (folder / "merges.txt").is_file()):
        raise UserError(f"{file} is missing: copy the tokenizer files of the original checkpoint there")
    file, kind = (file, PreTrainedTokenizerFast) if file.is_file() else (vocabulary, Qwen2Tokenizer)
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"{file} cannot be read as a fast tokenizer: {error}") from error


# ------------------------------------------------------------------------------------------------------------- write


def _replace(out: Path, partial: Path) -> None:
    """Puts a finished folder in the place of `out`; strangers in an old one move along."""
    if not out.exists():
        partial.rename(out)
        return
    old = out.with_name(f".{out.name}.replaced-{os.getpid()}")
    out.rename(old)
    partial.rename(out)
    ours = (CONFIG, METADATA, INDEX, BIN_INDEX, "*.safetensors", "pytorch_model*.bin", *COMPANIONS)
    for file in old.iterdir():
        if not any(file.match(pattern) for pattern in ours):
            with suppress(OSError):
                file.rename(out / file.name)
    shutil.rmtree(old, ignore_errors=True)
