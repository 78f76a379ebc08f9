"""The files that a run leaves behind. The JSONL is the truth; trackers and reports mirror it.

Every file is written under a temporary name and renamed, and a JSONL is appended line by line, so that nothing
half-written is ever taken for whole.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from unmask.errors import UserError

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "numpy")


def write_text(path: Path, text: str) -> None:
    """Writes a whole file under a temporary name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that a person can read."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL; a last line that was cut off while being written is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class RunDirectory:
    """`config.yaml`, `env.json`, `metrics.jsonl`, `rollouts.jsonl`, `checkpoints/step-N/`, `model/`, `report.html`.

    Only the main process writes.
    """

    def __init__(self, path: str | Path, main: bool = True):
        self.path, self.main = Path(path), main
        self.metrics, self.rollouts = self.path / "metrics.jsonl", self.path / "rollouts.jsonl"
        self.model, self.checkpoints = self.path / "model", self.path / "checkpoints"

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
            changed = sorted(name for name in was.keys() | wanted.keys() if was.get(name) != wanted.get(name))
            if changed:
                raise UserError(
                    f"--resume: the settings differ from those of {config} ({', '.join(changed)}): "
                    "repeat the run's own command, or choose another --out"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"--out {self.path} is not empty and holds no run: choose another directory")

    def claim(self, settings: Mapping[str, Any], env: Mapping[str, Any]) -> None:
        """Makes the directory that of a run with these settings; one that is resumed keeps its own."""
        if self.main and not (self.path / "config.yaml").exists():
            write_json(self.path / "env.json", env)
            write_text(self.path / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False))

    def append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows to a JSONL."""
        if self.main:
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def rewind(self, step: int) -> None:
        """Forgets the rows of steps after `step`: they were made after the checkpoint that is resumed from."""
        if self.main:
            for path in (self.metrics, self.rollouts):
                rows = [row for row in read_jsonl(path) if row["step"] <= step]
                write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def latest_checkpoint(self) -> Path | None:
        """The whole checkpoint of the highest step."""
        found = [path for path in self.checkpoints.glob("step-*") if path.name[5:].isdigit()]
        return max(found, key=lambda path: int(path.name[5:]), default=None)

    def retain(self, keep: int) -> None:
        """Deletes all but the last `keep` checkpoints."""
        found = sorted(self.checkpoints.glob("step-*"), key=lambda path: int(path.name[5:]))
        for path in found[:-keep]:
            shutil.rmtree(path)


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is: not where it is written, nor on which machine it goes on."""
    compute = {name: value for name, value in settings["compute"].items() if name not in ("device", "threads")}
    return {**settings, "out": None, "compute": compute}


def environment(device: str) -> dict[str, Any]:
    """Versions, machine, git commit and command of this process."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "unmask": metadata.version("unmask"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "commit": _commit(),
        "command": " ".join(["unmask", *sys.argv[1:]]),
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed one, or without git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
