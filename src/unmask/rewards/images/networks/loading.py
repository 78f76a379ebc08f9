"""Networks and their weights: found, read and checked once per process and settings."""

import functools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from unmask.errors import UserError
from unmask.models.location import is_local
from unmask.models.weights import first_few, parse_dtype

Loaded = TypeVar("Loaded")

_ON_THE_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+):([\w./-]+)")
_NAME_ANOTHER = "check the name and the network, or name what is here"
_REMEDY = "fetch or copy it again"


def once(load: Callable[..., Loaded]) -> Callable[..., Loaded]:
    """A loader whose results are kept: threads that ask for the same settings get one copy, loaded once."""
    kept, lock = functools.cache(load), threading.RLock()

    @functools.wraps(load)
    def call(*settings: Any) -> Loaded:
        with lock:
            return kept(*settings)

    return call


@functools.cache  # the current GPU is a property of a thread: that of a run's start, not of one that judges, is meant
def device_of(name: str) -> torch.device:
    """`auto` is this process's GPU, or the CPU where there is none.

    Raises:
        UserError: no such device here.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} of a reward: must be auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"device {name!r} of a reward: torch sees {torch.cuda.device_count()} GPUs; use auto or cpu")
    return device


def pretrained(kind: Any, source: str, dtype: str) -> Any:
    """A network of transformers, in evaluation mode, on the CPU.

    Args:
        kind: its class.
        source: folder in Hugging Face layout, or hub id.
        dtype: of its weights.

    Raises:
        UserError: it is not there, or its weights are broken or do not fit.
    """
    _require_folder(source, "config.json")
    try:
        with _quiet():
            there, wanted = kind.config_class.get_config_dict(source)[0].get("model_type"), kind.config_class.model_type
            if there != wanted:
                raise UserError(f"{source} is a {there}, but a {wanted} is needed: name another")
            model, found = kind.from_pretrained(source, dtype=parse_dtype(dtype), output_loading_info=True)
    except UserError:
        raise
    except Exception as error:  # transformers, the hub client and torch raise dozens of kinds
        raise UserError(f"{source} cannot be loaded: {_said(error)}; {_NAME_ANOTHER}") from error
    if found["missing_keys"]:
        raise UserError(f"{source}: {kind.__name__} misses {first_few(found['missing_keys'])}; {_REMEDY}")
    return model.eval().requires_grad_(False)


def tokenizer_of(kind: Any, source: str) -> Any:
    """A tokenizer of transformers.

    Raises:
        UserError: it is not there.
    """
    _require_folder(source, None)
    try:
        return kind.from_pretrained(source)
    except Exception as error:
        raise UserError(f"tokenizer {source} cannot be loaded: {_said(error)}; {_NAME_ANOTHER}") from error


def require_words(tokenizer: Any, source: str, rows: int, spare: int = 0) -> None:
    """Refuses a tokenizer of another model; transformers makes an empty one where a folder has none.

    Args:
        tokenizer: was loaded from `source`.
        rows: of the network's table of tokens ...
        spare: ... of which so many may be unused.
    """
    if not rows - spare <= len(tokenizer) <= rows:
        raise UserError(f"tokenizer {source} knows {len(tokenizer)} tokens, but the network {rows}: name its own")


def read_tensors(source: str) -> dict[str, Tensor]:
    """Tensors by name from one file: safetensors, or PyTorch's format without anything but tensors.

    Args:
        source: a file here, or OWNER/NAME:FILE of the hub. What looks like a path never goes to the hub.

    Raises:
        UserError: it is not there, or broken.
    """
    path, hub = Path(source).expanduser(), _ON_THE_HUB.fullmatch(source)
    if hub and not path.exists():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(hub[1], hub[2]))
        except Exception as error:  # as above
            raise UserError(f"{source} could not be had from the hub: {_said(error)}; {_NAME_ANOTHER}") from error
    if not path.is_file():
        raise UserError(f"{source} is not there: name a file of weights, or OWNER/NAME:FILE of the hub")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # garbage makes torch's reader raise IndexError, AssertionError and more
        raise UserError(f"{path} is truncated or holds more than tensors ({_said(error)}); {_REMEDY}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} does not hold tensors by name; {_REMEDY}")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def filled(module: torch.nn.Module, state: dict[str, Tensor], source: str, dtype: str) -> Any:
    """A module with these weights, in evaluation mode.

    Raises:
        UserError: names or shapes do not fit.
    """
    here = module.state_dict()
    missing, extra = here.keys() - state.keys(), state.keys() - here.keys()
    odd = [name for name in here.keys() & state.keys() if here[name].shape != state[name].shape]
    for what, names in (("misses", missing), ("has unknown", extra), ("has other shapes for", odd)):
        if names:
            raise UserError(f"{source} {what} {first_few(names)}: these are not the weights of this reward")
    module.load_state_dict(state)
    return module.to(parse_dtype(dtype)).eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers: runs have their own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _require_folder(source: str, file: str | None) -> None:
    """Refuses what looks like a path and is no folder with this file."""
    if not is_local(source):
        return
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"{source} is {'a file' if folder.exists() else 'not there'}: name a model's folder or hub id")
    if file is not None and not (folder / file).is_file():
        raise UserError(f"{source} holds no {file}: name a model's folder or hub id")


def _said(error: Exception) -> str:
    """The first line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
