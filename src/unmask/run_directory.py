"""The files that a run leaves behind. The JSONL is the truth; trackers and reports mirror it.

Every file is written under a temporary name and renamed, and a JSONL is appended line by line, so that nothing
half-written is ever taken for whole.
"""

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from unmask.errors import RunError, UserError

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "numpy")


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Around everything that is written during a run: what the disk refuses becomes one line.

    Raises:
        RunError: the disk is full or read-only, or a folder is gone; the checkpoints that were there stay whole.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        number = error.errno if isinstance(error, OSError) else None
        full = number in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        remedy = "make room" if full else "mend it"
        raise RunError(
            f"cannot write {what}: {reason}; {remedy}, then --resume goes on from the last checkpoint, which is whole"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a whole file under a temporary name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that a person can read."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL of a run; a last line that was cut off while being written is left out.

    Raises:
        UserError: another line is no JSON object.
    """
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number} is no JSON object: repair or remove that line") from error
        rows.append(row)
    return rows


class RunDirectory:
    """`config.yaml`, `env.json`, `metrics.jsonl`, `rollouts.jsonl`, `checkpoints/step-N/`, `model/`, `report.html`.

    Only the main process writes.
    """

    def __init__(self, path: str | Path, main: bool = True):
        self.path, self.main = Path(path), main
        self.metrics, self.rollouts = self.path / "metrics.jsonl", self.path / "rollouts.jsonl"
        self.notes, self.failures = self.path / "notes.jsonl", self.path / "failures"
        self.model, self.checkpoints = self.path / "model", self.path / "checkpoints"
        self._written: dict[Path, int] = {}  # bytes of each JSONL after our last line

    @property
    def finished(self) -> bool:
        return self.model.is_dir()

    def check(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Looks whether a run with these settings can be written here; writes nothing.

        Raises:
            UserError: it holds a run already and `resume` is false, or its settings are others.
        """
        config = self.path / "config.yaml"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file: name a directory")
        if config.exists():
            if not resume:
                raise UserError(f"--out {self.path} holds a run already: add --resume, or choose another directory")
            was, wanted = _settings(yaml.safe_load(config.read_text(encoding="utf-8"))), _settings(settings)
            if wanted["compute"]["dtype"] == "auto":  # what it means is known once the model is loaded
                wanted["compute"]["dtype"] = was["compute"]["dtype"]
            changed = sorted(name for name in was.keys() | wanted.keys() if was.get(name) != wanted.get(name))
            if changed:
                raise UserError(
                    f"--resume: the settings differ from those of {config} ({', '.join(changed)}): "
                    "repeat the run's own command, or choose another --out"
                )
        elif self.path.exists() and any(not _is_leftover(path) for path in self.path.iterdir()):
            raise UserError(f"--out {self.path} is not empty and holds no run: choose another directory")

    def claim(self, settings: Mapping[str, Any], env: Mapping[str, Any]) -> None:
        """Makes the directory that of a run with these settings; one that is resumed keeps its own.

        Raises:
            UserError: it cannot be written.
        """
        if not self.main:
            return
        try:
            if not (self.path / "config.yaml").exists():
                write_text(self.path / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False))
            if not (self.path / "env.json").exists():
                write_json(self.path / "env.json", env)
        except OSError as error:
            raise UserError(f"--out {self.path}: {error.strerror}; name a directory that can be written") from error

    def append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows to a JSONL.

        Raises:
            RunError: it cannot be written, or it is not as this run left it: somebody deleted or changed it.
        """
        if not self.main:
            return
        with writing(path), path.open("a", encoding="utf-8") as file:
            if file.tell() != self._written.get(path, file.tell()):
                raise RunError(
                    f"{path} was deleted or changed while the run writes it: put it back, then --resume goes on from "
                    "the last checkpoint; or start anew with another --out"
                )
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            self._written[path] = file.tell()

    def fail(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Keeps the rows behind a failure, from any process; returns the file."""
        path = self.failures / f"{name}.jsonl"
        with writing(path):
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path

    def rewind(self, step: int) -> None:
        """Forgets the rows of steps after `step`: they were made after the checkpoint that is resumed from.

        Raises:
            UserError: rows of earlier steps are missing from metrics.jsonl.
        """
        if not self.main:
            return
        for path in (self.metrics, self.rollouts, self.notes):
            rows = [row for row in read_jsonl(path) if row["step"] <= step]
            if path == self.metrics and [row["step"] for row in rows] != list(range(1, step + 1)):
                raise UserError(
                    f"{path} does not hold one row for each of the {step} steps before the checkpoint: "
                    "put the file back, or start anew with another --out"
                )
            with writing(path):
                write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            self._written[path] = path.stat().st_size
        for leftover in filter(_is_leftover, (*self.path.iterdir(), *self.checkpoints.glob("*"))):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def room(self, size: int, what: str) -> None:
        """Looks whether `size` more bytes fit on the disk.

        Raises:
            RunError: they do not.
        """
        there = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        if self.main and size > free:
            raise RunError(
                f"the disk is nearly full: {what} needs {size / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free at "
                f"{there}; make room, then --resume goes on from the last checkpoint, which is whole"
            )

    def latest_checkpoint(self) -> Path | None:
        """The whole checkpoint of the highest step."""
        found = [path for path in self.checkpoints.glob("step-*") if path.name[5:].isdigit()]
        return max(found, key=lambda path: int(path.name[5:]), default=None)

    def retain(self, keep: int) -> None:
        """Deletes all but the last `keep` checkpoints."""
        found = sorted(self.checkpoints.glob("step-*"), key=lambda path: int(path.name[5:]))
        for path in found[:-keep]:
            doomed = path.with_name(f".{path.name}.old")  # renamed first: a killed process leaves no half checkpoint
            os.replace(path, doomed)
            shutil.rmtree(doomed)


def _is_leftover(path: Path) -> bool:
    """What a killed process left half-written or half-deleted."""
    return path.name.startswith(".") and path.suffix in (".tmp", ".old")


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is: not where it is written, nor on which machine and in which pieces it is computed."""
    compute = {name: settings["compute"].get(name) for name in ("dtype", "precision")}
    return {**settings, "out": None, "guard": None, "compute": compute}


def environment(device: str) -> dict[str, Any]:
    """Versions, machine, git commit and command of this process."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        **provenance(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "command": " ".join(["unmask", *sys.argv[1:]]),
    }


def provenance() -> dict[str, str | None]:
    """Version and git commit of this package."""
    return {"unmask": metadata.version("unmask"), "commit": _commit()}


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed one, or without git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
