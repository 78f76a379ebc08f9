"""`unmask demo`: evaluates a built-in base model, trains it, evaluates it again, writes the report."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from unmask.config import TrainConfig, parse, preset_names
from unmask.errors import UserError
from unmask.evaluation import diversity, evaluate
from unmask.models import load
from unmask.progress import Progress
from unmask.report import write_report
from unmask.rl import train
from unmask.run_directory import write_json
from unmask.runtime import Runtime

GROUPS, COPIES = 60, 4
"""Test items, and answers to each, that diversity is measured on where answers are draws."""


def demo(task: str, seed: int, out: str | None, method: str | None, overrides: Sequence[str]) -> None:
    """Runs the preset `demo-TASK`; `overrides` are more words of `unmask train`."""
    name = f"demo-{task}"
    if name not in preset_names("runs"):
        known = ", ".join(preset[5:] for preset in preset_names("runs") if preset.startswith("demo-"))
        raise UserError(f"there is no demo of task {task!r}; demos are {known}")
    folder = Path(out) if out is not None else _free(Path("runs") / f"demo-{task}-seed{seed}")
    words = ["--config", name, "--out", str(folder), "--seed", str(seed), *overrides]
    words += [] if method is None else ["--method", method]
    config = parse(TrainConfig, "train", words)
    if folder.exists():
        raise UserError(f"--out {folder} exists already: choose another directory")
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()

    runtime = Runtime(config.compute)

    spread: dict[str, float] = {}

    def solved(source: str, when: str) -> dict[str, Any]:
        model = load(source, device=runtime.device, dtype="float32").answering(config.task.answers)
        with Progress(f"evaluate {when}", 0) as progress:
            result = evaluate(model, config.task, sampler=config.sampler, runtime=runtime, progress=progress)
        if not model.modality.greedy:
            drawn = evaluate(
                model, config.task, items=GROUPS, samples=COPIES, sampler=config.sampler, seed=1, runtime=runtime
            )
            spread[f"diversity_{when}"] = round(diversity(drawn["generations"]), 4)
        low, high = result["interval"]
        share, items = result["score"], result["items"]
        console.print(f"{when}: {share:.3f} of {items} test items solved (95 % interval {low:.3f} to {high:.3f})")
        return result

    console.print(f"{config.method} on {task}, seed {seed}; everything goes to {folder}")
    before = solved(str(config.model), "before")
    run = train(config)
    after = solved(str(folder / "model"), "after")
    write_json(folder / "evaluation" / "before.json", before)
    write_json(folder / "evaluation" / "after.json", after)
    summary = {
        "task": task,
        "method": "shuffled-rewards" if config.shuffle_rewards else config.method,
        "seed": seed,
        "before": before["score"],
        "after": after["score"],
        "test_items": after["items"],
        "steps": run.step,
        "seconds": round(time.monotonic() - started, 1),
        **spread,
    }
    write_json(folder / "summary.json", summary)
    page = write_report(folder)
    console.print(f"solved before {before['score']:.3f}, after {after['score']:.3f}; {summary['seconds']:.0f} s")
    print(f"report  {page}")


def _free(path: Path) -> Path:
    """The path itself, or the first free one with a number behind it."""
    if not path.exists():
        return path
    number = 2
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")
