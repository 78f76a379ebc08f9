"""Codes of pictures, each computed once."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unmask.errors import UserError
from unmask.pictures import StoredPicture, picture_in
from unmask.tensors import write_tensors

_AT_ONCE = 32  # pictures
_MOST_KEPT = 2**30  # bytes of codes in memory


class Codes:
    """From pictures to grids of codes through the model's image tokenizer.

    What was computed for a file is remembered by its content, in memory (up to 1 GiB) and in `folder` if that is set:
    one small file per picture, which other runs with the same image tokenizer can use.

    Attributes:
        folder: for codes that outlive the process; None keeps none.

    Args:
        tokenizer: gives the image tokenizer, None where there is none.
    """

    def __init__(self, tokenizer: Callable[[], Any]):
        self._tokenizer = tokenizer
        self.folder: Path | None = None
        self._kept: dict[str, Tensor] = {}
        self._bytes = 0
        self._print: str | None = None

    @property
    def tokenizer(self) -> Any:
        """The image tokenizer.

        Raises:
            UserError: the model has none.
        """
        found = self._tokenizer()
        if found is None:
            raise UserError("the model has no image tokenizer, so no pictures: name one with --image_tokenizer")
        return found

    def __call__(self, pictures: Sequence[Any], grid: tuple[int, int]) -> Int[Tensor, "b h w"]:
        """Codes of pictures, each scaled and cut to a grid of (height, width) codes, on the CPU.

        Args:
            pictures: PIL pictures, which are computed anew, or stored ones.

        Raises:
            UserError: one that cannot be read; the model has no image tokenizer.
        """
        files = [(one.content(), str(one)) if isinstance(one, StoredPicture) else None for one in pictures]
        keys = [place if file is None else self._key(file[0], grid) for place, file in enumerate(files)]
        found: dict[int | str, Tensor] = {}
        for key in set(keys):
            if isinstance(key, str) and (known := self._known(key, grid)) is not None:
                found[key] = known
        missing = {key: place for place, key in enumerate(keys) if key not in found}  # each once
        for start in range(0, len(missing), _AT_ONCE):
            part = list(missing.items())[start : start + _AT_ONCE]
            shown = [pictures[place] if (file := files[place]) is None else picture_in(*file) for _, place in part]
            for (key, _), codes in zip(part, self._computed(shown, grid), strict=True):
                found[key] = codes.clone()
                if isinstance(key, str):
                    self._keep(key, found[key])
        return torch.stack([found[key] for key in keys]).long()

    def _computed(self, pictures: Sequence[Any], grid: tuple[int, int]) -> Int[Tensor, "b h w"]:
        tokenizer = self.tokenizer
        size = (grid[1] * tokenizer.factor, grid[0] * tokenizer.factor)
        return tokenizer.encode(tokenizer.from_pictures(pictures, size)).to("cpu", torch.int32)

    def _key(self, content: bytes, grid: tuple[int, int]) -> str:
        """A name for the codes of this file: they depend on its content, the grid and the image tokenizer."""
        if self._print is None:
            state = hashlib.sha256()
            for name, tensor in self.tokenizer.state_dict().items():
                state.update(name.encode())
                state.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
            self._print = state.hexdigest()
        about = f"{self._print} {grid[0]} {grid[1]} ".encode()
        return hashlib.sha256(about + hashlib.sha256(content).digest()).hexdigest()

    def _known(self, key: str, grid: tuple[int, int]) -> Int[Tensor, "h w"] | None:
        if key in self._kept or self.folder is None:
            return self._kept.get(key)
        file = self._file(self.folder, key)
        if not file.is_file():
            return None
        try:
            codes = load_file(file)["codes"]
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}): delete it, it is made again") from error
        if (
            codes.shape != grid
            or codes.dtype != torch.int32
            or not 0 <= codes.min() <= codes.max() < self.tokenizer.codes
        ):
            raise UserError(f"{file} does not hold {grid[0]} x {grid[1]} codes: delete it, it is made again")
        self._remember(key, codes)
        return codes

    def _keep(self, key: str, codes: Tensor) -> None:
        self._remember(key, codes)
        if self.folder is not None:
            file = self._file(self.folder, key)
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as partial:
                write_tensors(Path(partial) / file.name, {"codes": codes})
                os.replace(Path(partial) / file.name, file)

    def _remember(self, key: str, codes: Tensor) -> None:
        size = codes.numel() * codes.element_size()
        if self._bytes + size <= _MOST_KEPT and key not in self._kept:
            self._kept[key] = codes
            self._bytes += size

    @staticmethod
    def _file(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"
