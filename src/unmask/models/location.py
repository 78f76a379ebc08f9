"""Where a model is: a folder, a run directory, a built-in one, or the hub."""

import os
from importlib import resources
from pathlib import Path

from unmask.errors import UserError
from unmask.models.weights import BIN_INDEX, INDEX

CONFIG, METADATA, IMAGE_TOKENIZER = "config.json", "unmask.json", "image_tokenizer"
COMPANIONS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json", "*.py"),
)
"""Files that belong to a checkpoint beside its weights and configuration: copied byte for byte."""


def is_local(source: str) -> bool:
    """Whether a name means a place here; only what does not is looked up on the hub."""
    return (
        source.startswith(("builtin:", os.sep, ".", "~"))
        or source.endswith(os.sep)
        or source.count("/") > 1  # hub ids are NAME or OWNER/NAME
        or Path(source).exists()
    )


def locate(source: str | os.PathLike[str], revision: str | None) -> Path:
    """The folder with the model's `config.json`; UserError says what is not there."""
    name = os.fspath(source)
    if isinstance(source, os.PathLike) or is_local(name):
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

    beside = [f"{IMAGE_TOKENIZER}/*.json", f"{IMAGE_TOKENIZER}/pytorch_model.bin"]
    patterns = [CONFIG, "*.safetensors", INDEX, METADATA, *COMPANIONS, *beside]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(name, revision=revision, allow_patterns=["pytorch_model*.bin", BIN_INDEX])
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        at = "" if revision is None else f" at revision {revision}"
        raise UserError(f"{name}{at} is no folder here and could not be had from the hub: {reason}") from error
    return folder
