"""The README.md of an exported model: where it comes from, how it was trained, how to use it."""

from pathlib import Path
from typing import Any

import yaml

from unmask.errors import UserError
from unmask.models.location import is_local
from unmask.run_directory import read_jsonl


def model_card(run: Path) -> str:
    """A model card in the hub's format (YAML, then Markdown), from the settings and metrics of a run directory.

    Raises:
        UserError: the run's config.yaml cannot be read.
    """
    settings = _settings(run / "config.yaml")
    base = str(settings["model"]) if settings.get("model") else None
    metrics = read_jsonl(run / "metrics.jsonl")
    front: dict[str, Any] = {"library_name": "unmask", "tags": ["discrete-diffusion", "masked-diffusion"]}
    start = base or "a new model"
    if base is not None and not is_local(base):
        front["base_model"] = base
    elif base is not None:
        start = Path(base).name  # where it was on this machine is nobody's business
    facts = {
        "Start": start,
        "Training": _training(settings),
        "Task": _name(settings.get("task")),
        "Steps": len(metrics) or None,
        "Adapters": "LoRA, merged into the weights" if settings.get("adapter") else None,
        "Seed": settings.get("seed"),
        "Success on validation, last": _last(metrics, "eval/success"),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value is not None)
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---
# {_name(settings.get("task"))}, {_training(settings)}

Trained with unmask. Weights and configuration are in the official format of their family: the authors' own code reads
them, and `unmask sample FOLDER --prompt TEXT` too.

| | |
|---|---|
{table}

Licence and limits are those of the model that training started from. No benchmark is reported here.
"""


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({' '.join(str(error).split())}): correct it") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file} holds no settings: correct it")
    return settings


def _training(settings: dict[str, Any]) -> str:
    method = settings.get("method")
    return f"reinforcement learning ({method})" if method else "supervised fine-tuning"


def _name(component: Any) -> str:
    path = component.get("class_path") if isinstance(component, dict) else component
    return str(path).rpartition(".")[2]


def _last(metrics: list[dict[str, Any]], key: str) -> str | None:
    found = [row for row in metrics if key in row]
    return f"{found[-1][key]:.3f} at step {found[-1]['step']}" if found else None
