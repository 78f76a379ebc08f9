"""Files of weights, single or sharded, and the small JSON files beside them.

Safetensors are read and written; PyTorch's `.bin` files are read, tensors only.
"""

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.errors import UserError
from unmask.tensors import write_tensors

SHARD_BYTES = 5 * 10**9
"""Weights above this size are written in several files."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN_WEIGHTS, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


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
    names: Mapping[str, tuple[str, ...]],
    spare: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device,
    dtype: torch.dtype | None,
    stale: bool = False,
) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
    """The weights of a checkpoint, single or sharded; one tensor at a time, so that memory holds one copy.

    Args:
        folder: where they are.
        names: official name -> neutral names, whose rows it holds one after the other: exactly what must be there.
        spare: official name -> the neutral name that it repeats: it may be there too, or instead.
        shapes: by neutral name.
        device, dtype: to bring them to; None keeps the stored dtype.
        stale: spare tensors may differ from what they repeat, and are ignored.

    Returns:
        Weights by neutral name, and their stored dtypes by official name.

    Raises:
        UserError: missing, unknown, misshapen or quantised tensors, by name; a broken or missing file.
    """
    places = _places(folder)
    repeated = {(spare[name],) for name in spare if name in places}
    missing = {name for name in names.keys() - places.keys() if names[name] not in repeated}
    extra = places.keys() - names.keys() - spare.keys()
    if missing or extra:
        parts = [f"{len(missing)} tensors are missing ({first_few(missing)})"] if missing else []
        parts += [f"{len(extra)} are unknown ({first_few(extra)})"] if extra else []
        raise UserError(f"{folder}: the weights do not fit config.json: {'; '.join(parts)}")
    names = {name: (ours,) for name, ours in spare.items() if name in places} | dict(names)  # the original comes last
    state: dict[str, Tensor] = {}
    stored: dict[str, torch.dtype] = {}
    for file in sorted({file for file, _ in places.values()}):
        with opened(file) as tensors:
            here = [name for name in names if name in places and places[name][0] == file]
            wanted = {name: _joined([shapes[one] for one in names[name]]) for name in here}
            found = {name: tuple(tensors.get_slice(places[name][1]).get_shape()) for name in here}
            odd = [f"{n} is {list(found[n])} instead of {list(wanted[n])}" for n in here if found[n] != wanted[n]]
            if odd:
                raise UserError(f"{file}: wrong shapes for config.json: {first_few(odd)}")
            for name in here:
                tensor = tensors.get_tensor(places[name][1])
                if not tensor.is_floating_point():
                    raise UserError(f"{file}: {name} is {dtype_name(tensor.dtype)}, but only floats are supported")
                stored[name] = tensor.dtype
                known = state.get(names[name][0])
                if known is not None and not stale and not known.is_meta and not torch.equal(known, tensor.to(known)):
                    repeated = next(one for one in spare if spare[one] == names[name][0])
                    raise UserError(
                        f"{folder}: {repeated} and the embedding differ, but config.json ties them: untie them there"
                    )
                if known is not None and name in spare:
                    continue
                # Copies, not the mapped file: aligned memory, and the file may change while the model lives.
                for one, part in zip(names[name], tensor.split([shapes[one][0] for one in names[name]]), strict=True):
                    state[one] = part.to(device, dtype, copy=True)
    if dtype is None and len(set(stored.values())) > 1:
        common = next(stored[name] for name in names if name in stored)
        state = {name: tensor.to(common) for name, tensor in state.items()}
    return state, stored


def _joined(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of tensors whose rows stand one after the other."""
    return sum(shape[0] for shape in shapes), *shapes[0][1:]


def write_weights(
    folder: Path,
    names: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Writes one file, or shards with their index; tensors are joined, cast and brought to the CPU one by one.

    Args:
        folder: where to.
        names: official name -> neutral names.
        tensors: by neutral name.
        dtypes: by official name.
    """
    shards: list[list[str]] = [[]]
    sizes = {name: sum(tensors[one].numel() for one in names[name]) * dtypes[name].itemsize for name in names}
    room = SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    count, places = len(shards), {}
    for number, shard in enumerate(shards, 1):
        file = WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        content = {}
        for name in shard:
            parts = [tensors[one].detach().to("cpu", dtypes[name]) for one in names[name]]
            content[name] = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        write_tensors(folder / file, _unshared(content), {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    if count > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})


def _unshared(content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuse two names of one memory: the second gets a copy (the head of a tied model)."""
    seen: set[int] = set()
    for name, tensor in content.items():
        if tensor.data_ptr() in seen:
            content[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return content


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A file of tensors, its defects named; it has `keys`, `get_slice(name).get_shape` and `get_tensor`."""
    if file.suffix == ".bin":
        yield _Unpickled(file)
        return
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is truncated or no safetensors file ({error}); fetch or copy it again") from error


class _Unpickled:
    """A `.bin` file, mapped, through the loader that accepts tensors only."""

    def __init__(self, file: Path):
        try:
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(
                f"{file} is truncated, or no PyTorch file of tensors only ({reason}); fetch it again or get safetensors"
            ) from error
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise UserError(f"{file} holds something else than tensors by name; get the safetensors of this model")
        self.content = content

    def keys(self) -> list[str]:
        return list(self.content)

    def get_tensor(self, name: str) -> Tensor:
        return self.content[name]

    def get_slice(self, name: str) -> "_Shape":
        return _Shape(self.content[name])


class _Shape:
    """The part of safetensors' slices that is used here."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)


def _plain(name: str) -> str:
    """A tensor name without the prefixes that PEFT, DDP and torch.compile put in front."""
    for prefix in ("base_model.model.", "module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name


def _places(folder: Path) -> dict[str, tuple[Path, str]]:
    """Official name of every stored tensor -> file and name in it."""
    places: dict[str, tuple[Path, str]] = {}
    for file in _weight_files(folder):
        with opened(file) as tensors:
            for stored in tensors.keys():  # noqa: SIM118 (no mapping: it cannot be iterated)
                name = _plain(stored)
                if name in places:
                    raise UserError(f"{file}: tensor {name} is stored twice")
                places[name] = file, stored
    if any(".lora_A." in name or ".lora_B." in name for name in places):
        raise UserError(f"{folder} holds LoRA factors that were not merged: merge them into the weights first")
    return places


def _weight_files(folder: Path) -> list[Path]:
    for single, index in ((WEIGHTS, INDEX), (BIN_WEIGHTS, BIN_INDEX)):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _indexed(folder, folder / index)
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds a LoRA adapter only: merge it into its base model first")
    others = first_few(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    found = f" (only {others}: rename or convert it)" if others else ""
    raise UserError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}{found}")


def _indexed(folder: Path, index: Path) -> list[Path]:
    """The shards that an index names; every one is there and holds what it should."""
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
        with opened(folder / name) as tensors:
            claimed = {tensor for tensor, file in mapping.items() if file == name}
            if lost := claimed - set(tensors.keys()):
                raise UserError(f"{index} says that {name} holds {first_few(lost)}, but it does not; fetch both again")
    return [folder / name for name in files]
