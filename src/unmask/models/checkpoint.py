"""Checkpoints in Hugging Face layout, read and written under their official names."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.errors import UserError
from unmask.models.backbone import Backbone
from unmask.models.families import Family, Settings, SpecialIds, family_of, special_ids

SHARD_BYTES = 5 * 10**9
"""Weights above this size are written in several files."""

CONFIG, WEIGHTS, INDEX, METADATA = "config.json", "model.safetensors", "model.safetensors.index.json", "unmask.json"
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
        source: the folder it was read from; None if it was never stored.
        stored: dtype of each tensor in the source, by official name; what `save` writes unless told otherwise.
        metadata: content of `unmask.json`, our own notes, read and written with the checkpoint.
    """

    backbone: Backbone
    tokenizer: Any
    family: Family
    config: dict[str, Any]
    ids: SpecialIds
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
            raise ValueError(f"the state to save is not that of a plain backbone: {_some(odd)}")
        asked = None if dtype is None else parse_dtype(dtype)
        dtypes = dict.fromkeys(names, asked) if asked is not None else self.stored
        config = self.config
        if asked is not None:
            config = config | {key: _name(asked) for key in ("torch_dtype", "dtype") if key in config}

        partial = out.with_name(f".{out.name}.saving-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write_weights(partial, {theirs: tensors[ours] for theirs, ours in names.items()}, dtypes)
            self._write_companions(partial, config)
            _replace(out, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write_companions(self, folder: Path, config: Mapping[str, Any]) -> None:
        if self.source is None:
            # transformers 4 reads a chat template from tokenizer_config.json only
            self.tokenizer.save_pretrained(folder, save_jinja_files=False)
        else:
            for file in sorted({file for pattern in COMPANIONS for file in self.source.glob(pattern)}):
                shutil.copyfile(file, folder / file.name)
        if self.source is not None and config == _read_json(self.source / CONFIG):
            shutil.copyfile(self.source / CONFIG, folder / CONFIG)
        else:
            _write_json(folder / CONFIG, config)
        if self.metadata:
            _write_json(folder / METADATA, self.metadata)


def load(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Model:
    """Reads a checkpoint.

    Args:
        source: folder in Hugging Face layout, run directory (its `model/` is read), `builtin:NAME`, or hub id. What looks like a
            local path never goes to the hub.
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
    config = _read_json(folder / CONFIG)
    family = family_of(config, str(folder / CONFIG))
    shape = family.read(Settings(config, str(folder / CONFIG)))
    tokenizer = _read_tokenizer(folder)
    if len(tokenizer) > shape.vocab:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, but the model only {shape.vocab} (config.json)")
    generation = folder / "generation_config.json"
    generated = _read_json(generation) if generation.is_file() else {}
    ids = special_ids(config, generated, tokenizer, shape.vocab, str(folder))

    with torch.device("meta"):
        backbone = Backbone(shape)
    names = family.names(shape)
    shapes = {theirs: tuple(backbone.get_parameter(ours).shape) for theirs, ours in names.items()}
    places = _places(folder)
    _check_names(folder, places, shapes)
    state, stored = _read_weights(places, shapes, names, torch.device(device), wanted)
    backbone.load_state_dict(state, assign=True)
    notes = folder / METADATA
    return Model(
        backbone.eval(), tokenizer, family, config, ids, folder, stored, _read_json(notes) if notes.is_file() else {}
    )


def metadata_of(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of `unmask.json` of a local or built-in model, without loading it; empty where there is none."""
    if not _is_local(str(source)):
        return {}
    notes = _locate(source, None) / METADATA
    return _read_json(notes) if notes.is_file() else {}


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating dtype of weights from its name."""
    known = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    found = next((one for one in known if dtype in (one, _name(one))), None)
    if found is None:
        raise UserError(f"dtype {dtype} is unknown: use {', '.join(map(_name, known))}")
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(names: Any) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


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


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object")
    return content


def _read_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file} is missing: copy the tokenizer files of the original checkpoint there")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"{file} cannot be read as a fast tokenizer: {error}") from error


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file, its defects named."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is truncated or no safetensors file ({error}); fetch or copy it again") from error


def _plain(name: str) -> str:
    """A tensor name without the prefixes that PEFT, DDP and torch.compile put in front."""
    for prefix in ("base_model.model.", "module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name


def _places(folder: Path) -> dict[str, tuple[Path, str]]:
    """Official name of every stored tensor -> file and name in it."""
    places: dict[str, tuple[Path, str]] = {}
    for file in _weight_files(folder):
        with _opened(file) as tensors:
            for stored in tensors.keys():  # noqa: SIM118 (no mapping: it cannot be iterated)
                name = _plain(stored)
                if name in places:
                    raise UserError(f"{file}: tensor {name} is stored twice")
                places[name] = file, stored
    if any(".lora_A." in name or ".lora_B." in name for name in places):
        raise UserError(f"{folder} holds LoRA factors that were not merged: merge them into the weights first")
    return places


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds a LoRA adapter only: merge it into its base model first")
        others = _some(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        found = f" (only {others}: convert to safetensors)" if others else ""
        raise UserError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}{found}")
    mapping = _read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
        raise UserError(f"{index} has no weight_map from tensors to files; fetch or copy it again")
    files = sorted(set(mapping.values()))
    for name in files:
        if Path(name).name != name:
            raise UserError(f"{index} names {name!r}, which is not a file of its folder")
        if not (folder / name).is_file():
            raise UserError(f"{index} names {name}, which is missing; fetch or copy it again")
    for name in files:
        with _opened(folder / name) as tensors:
            claimed = {tensor for tensor, file in mapping.items() if file == name}
            if lost := claimed - set(tensors.keys()):
                raise UserError(f"{index} says that {name} holds {_some(lost)}, but it does not; fetch both again")
    return [folder / name for name in files]


def _check_names(folder: Path, places: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    missing, extra = wanted.keys() - places.keys(), places.keys() - wanted.keys()
    if missing or extra:
        parts = [f"{len(missing)} tensors are missing ({_some(missing)})"] if missing else []
        parts += [f"{len(extra)} are unknown ({_some(extra)})"] if extra else []
        raise UserError(f"{folder}: the weights do not fit {CONFIG}: {'; '.join(parts)}")


def _read_weights(
    places: Mapping[str, tuple[Path, str]],
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
    device: torch.device,
    dtype: torch.dtype | None,
) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
    """Weights by neutral name, on the device, and their stored dtypes; one tensor at a time, so that memory holds one copy."""
    state: dict[str, Tensor] = {}
    stored: dict[str, torch.dtype] = {}
    for file in sorted({file for file, _ in places.values()}):
        with _opened(file) as tensors:
            here = [name for name in names if places[name][0] == file]  # the order of the module, whatever the file's
            odd = {name: tuple(tensors.get_slice(places[name][1]).get_shape()) for name in here}
            odd = {name: shape for name, shape in odd.items() if shape != shapes[name]}
            if odd:
                told = _some(f"{name} is {list(shape)} instead of {list(shapes[name])}" for name, shape in odd.items())
                raise UserError(f"{file}: wrong shapes for {CONFIG}: {told}")
            for name in here:
                tensor = tensors.get_tensor(places[name][1])
                if not tensor.is_floating_point():
                    raise UserError(f"{file}: {name} is {_name(tensor.dtype)}: quantised weights are not supported")
                stored[name] = tensor.dtype
                # A copy, not the mapped file: aligned memory, and the file may change while the model lives.
                state[names[name]] = tensor.to(device, dtype, copy=True)
    if dtype is None and len(set(stored.values())) > 1:
        common = stored[next(iter(names))]
        state = {name: tensor.to(common) for name, tensor in state.items()}
    return state, stored


# ------------------------------------------------------------------------------------------------------------- write


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """One file, or shards with their index; cast and brought to the CPU shard by shard."""
    shards: list[list[str]] = [[]]
    sizes = {name: tensor.numel() * dtypes[name].itemsize for name, tensor in tensors.items()}
    room = SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    count, places = len(shards), {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        content = {name: tensors[name].detach().to("cpu", dtypes[name]).contiguous() for name in names}
        save_file(content, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if count > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})


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
