"""What `unmask sample` and `unmask eval` do with a model that is not being trained."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console

from unmask.config import parse_object
from unmask.describe import describe
from unmask.errors import UserError
from unmask.evaluation import MOST_SAMPLES, evaluate
from unmask.models import Model, load
from unmask.models.checkpoint import metadata_of
from unmask.progress import Progress
from unmask.random import Random
from unmask.run_directory import write_json
from unmask.runtime import Compute, Runtime
from unmask.samplers import LowConfidence, Sampler
from unmask.tasks import Task, by_name
from unmask.tasks.base import LONGEST

DEFAULT_LENGTH = 256


def own_sampler(source: str, slots: int | None) -> dict[str, Any]:
    """The sampler that a model was trained with, or LLaDA's for a model that does not say; as plain data."""
    return metadata_of(source).get("sampler") or describe(_llada_sampler(slots or DEFAULT_LENGTH))


def _llada_sampler(slots: int) -> Sampler:
    return LowConfidence(steps=slots, temperature=0.0, block=32 if slots % 32 == 0 else 0)


def _sampler(options: Namespace, model: Model, slots: int) -> Sampler:
    if options.sampler is not None:
        return options.sampler
    if "sampler" in model.metadata:
        return parse_object(Sampler, model.metadata["sampler"], "sampler")
    return _llada_sampler(slots)


def _load(options: Namespace) -> tuple[Model, Runtime]:
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed must be in [0, 2^63), not {options.seed}")
    runtime = Runtime(Compute(device=options.device, precision=getattr(options, "precision", "auto")))
    dtype = options.dtype or ("float32" if runtime.device.type == "cpu" else None)
    model = load(options.model, device=str(runtime.device), dtype=dtype, revision=options.revision)
    return model, runtime


@torch.no_grad()
def generate(options: Namespace) -> None:
    """`unmask sample`: answers to stdout, one per line; the trace goes to stderr."""
    model, runtime = _load(options)
    if not 1 <= options.samples <= MOST_SAMPLES:
        raise UserError(f"--samples must be in [1, {MOST_SAMPLES}], not {options.samples}")
    slots = options.answer_length
    if slots is None:
        slots = model.metadata.get("answer_length", DEFAULT_LENGTH)
    if not 1 <= slots <= LONGEST:
        raise UserError(f"--answer_length must be in [1, {LONGEST}], not {slots}")
    sampler = _sampler(options, model, slots)
    if options.samples > 1 and sampler.temperature == 0:
        raise UserError("--samples needs a temperature: add --sampler.temperature 1")
    canvas = model.modality.encode([options.prompt] * options.samples, slots).to(runtime.device)
    random = Random.root(options.seed, "sample", device=runtime.device)
    policy = model.policy(autocast=runtime.autocast)
    answer = sampler(policy, canvas, random.fold(torch.arange(options.samples, device=runtime.device)))
    for text in model.modality.visible(answer.x.cpu()):
        print(text)
    if options.trace:
        _show_trace(model, answer.x[0].cpu(), answer.revealed_at[0].tolist())


def _show_trace(model: Model, x: torch.Tensor, revealed_at: list[int]) -> None:
    console = Console(stderr=True, highlight=False)
    pieces = [piece.replace("\n", "⏎") for piece in model.modality.pieces(x)]
    for step in sorted(set(revealed_at)):
        line = "".join(
            f"[bold green]{_escape(piece)}[/]" if at == step else _escape(piece) if at < step else "·" * len(piece)
            for piece, at in zip(pieces, revealed_at, strict=True)
        )
        console.print(f"{step:4d}  {line}", soft_wrap=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def evaluate_model(options: Namespace) -> None:
    """`unmask eval`: the result as JSON, to a file or to stdout; a summary to stderr."""
    kind = by_name(options.task)
    if options.out is not None and (Path(options.out).is_dir() or Path(options.out).parent.is_file()):
        raise UserError(f"--out {options.out} cannot be written: name a file")
    model, runtime = _load(options)
    task = _task(options, kind, model)
    for name, own in (("protocol", task.protocol), ("parser", task.parser)):
        if getattr(options, name) not in (None, own):
            raise UserError(f"--{name} {getattr(options, name)}: task {task.name} has {own}")
    sampler = _sampler(options, model, task.answer_length)
    with Progress("eval", 0, shown=runtime.main) as progress:
        result = evaluate(
            model,
            task,
            split=options.split,
            items=options["items"],  # `options.items` is a method
            sampler=sampler,
            samples=options.samples,
            seed=options.seed,
            batch=options.batch,
            runtime=runtime,
            progress=progress,
        )
    result["model"] = options.model
    if not runtime.main:
        return
    if options.out is None:
        json.dump(result, sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        write_json(Path(options.out), result)
    low, high = result["interval"]
    print(
        f"{task.name} {options.split}: {result['score']:.4f} [{low:.4f}, {high:.4f}] on {result['items']} items",
        file=sys.stderr,
    )


def _task(options: Namespace, kind: type[Task], model: Model) -> Task:
    """The task as the model was trained on it, if that is this one; else with its defaults."""
    told = model.metadata.get("task")
    task = parse_object(Task, told, "task") if told and told["class_path"].endswith(f".{kind.__name__}") else kind()
    changes: dict[str, Any] = {}
    if options.data is not None:
        if "data" not in asdict(task):
            raise UserError(f"--data: task {task.name} is generated and reads no file")
        changes["data"] = options.data
    if options.answer_length is not None:
        changes["answer_length"] = options.answer_length
    return replace(task, **changes)
