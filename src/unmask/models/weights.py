"""Safetensors files, single or sharded, and the small JSON files beside them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.errors import UserError

SHARD_BYTES = 5 * 10**9
"""Weights above this size are written in several files."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; UserError names a file that is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """As Hugging Face writes it: indented by two."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating dtype of weights from its name."""
    known = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    found = next((one for one in known if dtype in (one, dtype_name(one))), None)
    if found is None:
        raise UserError(f"dtype {dtype} is unknown: use {', '.join(map(dtype_name, known))}")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """Without `torch.`."""
    return str(dtype).removeprefix("torch.")


def first_few(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def read_weights(
    folder: Path,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device,
    dtype: torch.dtype | None,
) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
    """The weights of a checkpoint, single or sharded; one tensor at a time, so that memory holds one copy.

    Args:
        folder: where they are.
        names: official name -> neutral name: exactly the tensors that must be there.
        shapes: by official name.
        device, dtype: to bring them to; None keeps the stored dtype.

    Returns:
        Weights by neutral name, and their stored dtypes by official name.

    Raises:
        UserError: missing, unknown, misshapen or quantised tensors, by name; a broken or missing file.
    """
    places = _places(folder)
    missing, extra = names.keys() - places.keys(), places.keys() - names.keys()
    if missing or extra:
        parts = [f"{len(missing)} tensors are missing ({first_few(missing)})"] if missing else []
        parts += [f"{len(extra)} are unknown ({first_few(extra)})"] if extra else []
        raise UserError(f"{folder}: the weights do not fit config.json: {'; '.join(parts)}")
    state: dict[str, Tensor] = {}
    stored: dict[str, torch.dtype] = {}
    for file in sorted({file for file, _ in places.values()}):
        with _opened(file) as tensors:
            here = [name for name in names if places[name][0] == file]
            found = {name: tuple(tensors.get_slice(places[name][1]).get_shape()) for name in here}
            odd = [f"{name} is {list(found[name])} instead of {list(shapes[name])}" for name in here]
            odd = [line for line, name in zip(odd, here, strict=True) if found[name] != shapes[name]]
            if odd:
                raise UserError(f"{file}: wrong shapes for config.json: {first_few(odd)}")
            for name in here:
                tensor = tensors.get_tensor(places[name][1])
                if not tensor.is_floating_point():
                    raise UserError(f"{file}: {name} is {dtype_name(tensor.dtype)}, but only floats are supported")
                stored[name] = tensor.dtype
                # A copy, not the mapped file: aligned memory, and the file may change while the model lives.
                state[names[name]] = tensor.to(device, dtype, copy=True)
    if dtype is None and len(set(stored.values())) > 1:
        common = stored[next(iter(names))]
        state = {name: tensor.to(common) for name, tensor in state.items()}
    return state, stored


def write_weights(folder: Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Writes tensors by official name: one file, or shards with their index; cast and brought to the CPU one by one."""
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
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})


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
        others = first_few(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        found = f" (only {others}: convert to safetensors)" if others else ""
        raise UserError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}{found}")
    mapping = read_json(index).get("weight_map")
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
                raise UserError(f"{index} says that {name} holds {first_few(lost)}, but it does not; fetch both again")
    return [folder / name for name in files]
