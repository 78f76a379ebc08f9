"""Checkpoints in Hugging Face layout, read and written under their official names."""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.errors import UserError
from unmask.modalities.text import Text
from unmask.models.backbone import Backbone
from unmask.models.families import Family, Settings, SpecialIds, family_of, special_ids
from unmask.models.policy import BackbonePolicy
from unmask.models.weights import (
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

CONFIG, METADATA = "config.json", "unmask.json"
COMPANIONS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json", "*.py"),
)
"""Files that belong to a checkpoint beside its weights and configuration: copied byte for byte."""


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

    @cached_property
    def modality(self) -> Text:
        """How prompts and answers of this model are encoded."""
        ends = [one for one in (self.ids.eos, self.ids.end_of_turn) if one is not None]
        return Text(self.tokenizer, self.vocab, self.ids.mask, self.ids.pad, ends)

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
        banned = self.modality.banned.to(self.device) if ban else None
        return BackbonePolicy(forward or self.backbone, self.modality.vocab, self.ids.mask, banned, autocast)

    def reading(self, reward: Reward) -> Reward:
        """A reward that also knows the end and mask tokens of this model."""
        convert = self.tokenizer.convert_ids_to_tokens
        return reward.for_tokens(tuple(convert(self.modality.end_ids.tolist())), (convert(self.ids.mask),))

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
        names = self.family.names(self.backbone.config)
        tensors = self.backbone.state_dict() if state is None else state
        if tensors.keys() != set(names.values()):
            odd = tensors.keys() ^ set(names.values())
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
            write_weights(partial, {theirs: tensors[ours] for theirs, ours in names.items()}, dtypes)
            for name, content in self.files.items():
                (partial / name).write_bytes(content)
            if CONFIG not in self.files or config != read_json(partial / CONFIG):
                write_json(partial / CONFIG, config)
            if self.metadata:
                write_json(partial / METADATA, self.metadata)
            _replace(out, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def load(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Model:
    """Reads a checkpoint.

    Args:
        source: folder in Hugging Face layout, run directory (its `model/` is read), `builtin:NAME`, or hub id. What
            looks like a local path never goes to the hub.
        device: of the weights.
        dtype: of the weights, e.g. "float32"; None is the one they are stored in.
        revision: branch, tag or commit of a hub id.

    Returns:
        The model in eval mode (nothing in it depends on the mode), parameters trainable.

    Raises:
        UserError: in one line, what is missing, unknown, contradictory or broken, and in which file.
    """
    wanted = None if dtype is None else parse_dtype(dtype)
    folder = _locate(source, revision)
    config = read_json(folder / CONFIG)
    family = family_of(config, str(folder / CONFIG))
    shape = family.read(Settings(config, str(folder / CONFIG)))
    tokenizer = _read_tokenizer(folder)
    if len(tokenizer) > shape.vocab:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, but config.json only {shape.vocab}")
    generation = folder / "generation_config.json"
    generated = read_json(generation) if generation.is_file() else {}
    ids = special_ids(config, generated, tokenizer, shape.vocab, str(folder))

    with torch.device("meta"):
        backbone = Backbone(shape)
    names = family.names(shape)
    shapes = {theirs: tuple(backbone.get_parameter(ours).shape) for theirs, ours in names.items()}
    state, stored = read_weights(folder, names, shapes, torch.device(device), wanted)
    backbone.load_state_dict(state, assign=True)
    notes = folder / METADATA
    return Model(
        backbone=backbone.eval(),
        tokenizer=tokenizer,
        family=family,
        config=config,
        ids=ids,
        files={file.name: file.read_bytes() for pattern in (CONFIG, *COMPANIONS) for file in folder.glob(pattern)},
        source=folder,
        stored=stored,
        metadata=read_json(notes) if notes.is_file() else {},
    )


def metadata_of(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of `unmask.json` of a local or built-in model, without loading it; empty where there is none."""
    if not _is_local(str(source)):
        return {}
    notes = _locate(source, None) / METADATA
    return read_json(notes) if notes.is_file() else {}


# ------------------------------------------------------------------------------------------------------- where it is


def _is_local(source: str) -> bool:
    return (
        source.startswith(("builtin:", os.sep, ".", "~"))
        or source.endswith(os.sep)
        or source.count("/") > 1  # hub ids are NAME or OWNER/NAME
        or Path(source).exists()
    )


def _locate(source: str | os.PathLike[str], revision: str | None) -> Path:
    name = os.fspath(source)
    if isinstance(source, os.PathLike) or _is_local(name):
        if revision is not None:
            raise UserError(f"revision {revision!r} is of a hub id, and {name} is none: leave it out")
        folder = _builtin(name.removeprefix("builtin:")) if name.startswith("builtin:") else Path(name).expanduser()
    else:
        folder = _from_hub(name, revision)
    if not folder.is_dir():
        raise UserError(f"{name} is {'a file' if folder.exists() else 'not there'}: name the folder of a model")
    if (folder / CONFIG).is_file():
        return folder
    if (folder / "model" / CONFIG).is_file():
        return folder / "model"
    raise UserError(f"{folder} holds neither a model (no {CONFIG}) nor a run with a finished one (no model/{CONFIG})")


def _builtin(name: str) -> Path:
    assets = resources.files("unmask").joinpath("assets")
    known = sorted(entry.name for entry in assets.iterdir() if entry.is_dir()) if assets.is_dir() else []
    if name not in known:
        there = ", ".join(f"builtin:{one}" for one in known) or "none"
        raise UserError(f"builtin:{name} does not exist; there are: {there}")
    return Path(str(assets.joinpath(name)))


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [CONFIG, "*.safetensors", INDEX, METADATA, *COMPANIONS]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        at = "" if revision is None else f" at revision {revision}"
        raise UserError(f"{name}{at} is no folder here and could not be had from the hub: {reason}") from error


# -------------------------------------------------------------------------------------------------------------- read


def _read_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file} is missing: copy the tokenizer files of the original checkpoint there")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
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
    ours = (CONFIG, METADATA, INDEX, "*.safetensors", *COMPANIONS)
    for file in old.iterdir():
        if not any(file.match(pattern) for pattern in ours):
            with suppress(OSError):
                file.rename(out / file.name)
    shutil.rmtree(old, ignore_errors=True)
