"""What `unmask sample` and `unmask eval` do with a model that is not being trained."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from unmask.config import instantiate, parse_object, parsed
from unmask.describe import describe
from unmask.errors import UserError
from unmask.evaluation import MOST_SAMPLES, decoding, evaluate, rescore, rows_of
from unmask.messages import short
from unmask.modalities import Image
from unmask.models import Model, load
from unmask.models.checkpoint import outline
from unmask.picture_folder import PictureFolder
from unmask.pictures import open_picture, with_pictures
from unmask.progress import Progress
from unmask.random import Random
from unmask.rewards import by_name as reward_by_name
from unmask.run_directory import write_json
from unmask.runtime import Compute, Runtime
from unmask.samplers import Sampler
from unmask.stored import Partial, finished, read_generations
from unmask.tasks import Task, by_name
from unmask.tasks.base import LONGEST

DEFAULT_LENGTH = 256


Kind = Literal["text", "image"]


class Notes:
    """What `unmask.json` says about how a model was trained; UserError names the file where it cannot be used.

    Args:
        metadata: its content.
        source: its folder, for messages.
        usual: from slots and what is asked for to the sampler of the model's family.
    """

    def __init__(self, metadata: dict[str, Any], source: str, usual: Callable[[int, Kind], Sampler]):
        self.metadata, self.source, self.usual = metadata, source, usual

    @property
    def answers(self) -> Kind:
        """What the model is asked for, if nothing else is said."""
        return "image" if self.metadata.get("answers") == "image" else "text"

    def sampler(self, slots: int, answers: Kind) -> dict[str, Any]:
        """The model's own sampler as plain data, if it was trained on such answers and says it; else its family's."""
        own = self.metadata.get("sampler")
        if own is None or self.answers != answers:
            return describe(self.usual(slots, answers))
        return describe(self._parsed(Sampler, own, "sampler"))

    def answer_length(self) -> int:
        """Answer slots."""
        slots = self.metadata.get("answer_length", DEFAULT_LENGTH)
        if type(slots) is not int:
            raise UserError(f"{self.source}/unmask.json: answer_length must be a whole number, not {short(slots)!r}")
        return slots

    def task(self, kind: type[Task]) -> Task:
        """The task as the model was trained on it, if that is this one; else with its defaults."""
        told = self.metadata.get("task")
        if told is None or (isinstance(told, dict) and not str(told.get("class_path")).endswith(f".{kind.__name__}")):
            return kind()
        return self._parsed(Task, told, "task")

    def _parsed(self, kind: type, value: Any, name: str) -> Any:
        try:
            return parse_object(kind, value, name)
        except UserError as error:
            raise UserError(f"{self.source}/unmask.json: {error}") from error


def choose_sampler(
    words: Sequence[str], notes: Notes, slots: int, answers: Kind, fixed: Sampler | None = None
) -> Sampler:
    """The sampler that `--sampler CLASS` and `--sampler.OPTION VALUE` name.

    Options alone change `fixed`, the sampler of a protocol, or where it fixes none the model's own.
    """
    named = any(word == "--sampler" or word.startswith("--sampler=") for word in words)
    own = notes.sampler(slots, answers) if fixed is None else describe(fixed)
    start = [] if named else ["--sampler", json.dumps(own)]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampler", type=Sampler)
    return instantiate(parser, parsed(parser, {"sampler": Sampler}, [*start, *words])).sampler


def _load(options: Namespace, sampler: Sequence[str], answers: Kind | None) -> tuple[Model, Runtime, Notes]:
    """Model and runtime; what the sampler's words say is looked at before weights are read."""
    about = outline(options.model, options.revision)

    def usual(slots: int, kind: Kind) -> Sampler:
        return about.family.sampler(slots, about.shape, kind)

    notes = Notes(about.metadata, options.model, usual)
    choose_sampler(sampler, notes, options.answer_length or DEFAULT_LENGTH, answers or notes.answers)
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed must be in [0, 2^63), not {options.seed}")
    runtime = Runtime(Compute(device=options.device, precision=getattr(options, "precision", "auto")))
    dtype = options.dtype or ("float32" if runtime.device.type == "cpu" else None)
    model = load(
        options.model,
        device=str(runtime.device),
        dtype=dtype,
        revision=options.revision,
        image_tokenizer=options.image_tokenizer,
    )
    return model, runtime, Notes(model.metadata, str(model.source or options.model), usual)


@torch.no_grad()
def generate(options: Namespace, words: Sequence[str]) -> None:
    """`unmask sample`: texts to stdout, one per line, and their trace to stderr; pictures to files.

    Args:
        words: those that are about the sampler.
    """
    asked = options.to or ("text" if options.image else None)
    model, runtime, notes = _load(options, words, asked)
    if not 1 <= options.samples <= MOST_SAMPLES:
        raise UserError(f"--samples must be in [1, {MOST_SAMPLES}], not {options.samples}")
    model = model.answering(asked or model.answers)
    pictures = model.modality if isinstance(model.modality, Image) else None
    own = model.slots or notes.answer_length()
    slots = own if options.answer_length is None else options.answer_length
    if not 1 <= slots <= LONGEST:
        raise UserError(f"--answer_length must be in [1, {LONGEST}], not {slots}")
    sampler = choose_sampler(words, notes, slots, model.answers)
    files = _picture_files(options, pictures)
    if options.samples > 1 and sampler.temperature == 0:
        raise UserError("--samples needs a temperature: add --sampler.temperature 1")
    prompt = with_pictures(options.prompt, options.image) if options.image else options.prompt
    canvas = model.modality.encode([prompt] * options.samples, slots).to(runtime.device)
    random = Random.root(options.seed, "sample", device=runtime.device)
    policy = model.policy(autocast=runtime.autocast)
    given = None
    if pictures is not None and options.init is not None:
        given = pictures.given(open_picture(options.init), open_picture(options.mask), slots)
        given = given.repeat(options.samples, 1).to(runtime.device)
    answer = sampler(policy, canvas, random.fold(torch.arange(options.samples, device=runtime.device)), given)
    shown = model.modality.visible(answer.x.cpu())
    for picture, file in zip(shown, files, strict=True) if files else ():
        picture.save(file)
    for line in files or shown:
        print(line)
    if options.trace:
        _show_trace(model, answer.x[0].cpu(), answer.revealed_at[0].tolist())


def _picture_files(options: Namespace, pictures: Image | None) -> list[Path]:
    """Where pictures go; refuses options that do not fit what is asked for."""
    if pictures is None:
        given = [f"--{name}" for name in ("init", "mask", "out") if options[name] is not None]
        if given:
            raise UserError(f"{', '.join(given)}: for pictures; ask for one with --to image, if the model makes them")
        return []
    if options.image:
        raise UserError("--image is part of a prompt that a text answers: leave out --to image, or --image")
    if options.out is None or Path(options.out).suffix.lower() != ".png":
        raise UserError("--out FILE.png is where the picture goes: name one")
    if options.trace:
        raise UserError("--trace shows how a text appeared; leave it out for pictures")
    if (options.init is None) != (options.mask is None):
        raise UserError("--init and --mask go together: a picture, and what of it is painted anew (light)")
    _ = pictures.codes.tokenizer
    out = Path(options.out)
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    more = [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(2, options.samples + 1)]
    return [out, *more]


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


def evaluate_model(options: Namespace, words: Sequence[str], about_task: Sequence[str] = ()) -> None:
    """`unmask eval`: the result as JSON, to a file or to stdout; a summary to stderr.

    Args:
        words: those that are about the sampler.
        about_task: those about options of the task.
    """
    kind = by_name(options.task)
    for spec in options.reward:
        reward_by_name(spec)  # a mistake is told before weights are read
    if options.pictures is not None and (kind.answers != "image" or options.generations is not None):
        raise UserError(
            f"--pictures is for answers that are pictures, and task {options.task} is evaluated without any"
        )
    out = None if options.out is None else Path(options.out)
    if out is not None and (out.is_dir() or out.parent.is_file()):
        raise UserError(f"--out {out} cannot be written: name a file")
    if out is not None and out.exists() and not options.resume:
        go_on = "" if options.generations is not None else "add --resume to go on with it, or "
        raise UserError(f"--out {out} exists already: {go_on}choose another file")
    if options.resume and out is None:
        raise UserError("--resume needs --out FILE: what is finished is kept beside it")
    if options.generations is not None:
        _rescore(options, about_task, out, words)
        return
    if options.model is None:
        raise UserError("MODEL is required, or --generations FILE to score stored ones")
    model, runtime, notes = _load(options, words, kind.answers)
    model = model.answering(kind.answers)
    task = _task(options, notes.task(kind), about_task)
    sampler = choose_sampler(words, notes, task.answer_length, kind.answers, decoding(task))
    rows = rows_of(task, options.split, options["items"])  # `options.items` is a method
    settings = _settings(options, runtime, task, sampler)
    partial = None if out is None else out.with_name(f"{out.name}.partial.jsonl")
    if options.resume and out is not None and partial is not None and finished(out, settings):
        partial.unlink(missing_ok=True)
        if runtime.main:
            print(f"{out} is finished", file=sys.stderr)
        return
    if partial is not None and runtime.world > 1:
        partial = partial.with_name(f"{partial.stem}-{runtime.rank}.jsonl")
    folder = Path(options.pictures) if options.pictures is not None else None
    pictures = None if folder is None else PictureFolder(folder, rows, options.resume)
    runtime.wait()  # all have looked before the first one writes
    if pictures is not None and runtime.main:
        pictures.describe()
    with Progress("eval", 0, shown=runtime.main) as progress:
        result = evaluate(
            model,
            task,
            split=options.split,
            items=options["items"],
            sampler=sampler,
            samples=options.samples,
            seed=options.seed,
            batch=options.batch,
            parser=options.parser,
            runtime=runtime,
            progress=progress,
            partial=None if partial is None else Partial(partial, settings, options.resume),
            rewards=[task.named_reward(spec) for spec in options.reward],
            pictures=pictures,
        )
    result = {**result, "model": options.model, "settings": settings}
    result["generations"] = result.pop("generations")  # last: it is long
    if runtime.main:
        _tell(result, out, options.split)
    if partial is not None:
        runtime.wait()
        partial.unlink()


def _settings(options: Namespace, runtime: Runtime, task: Task, sampler: Sampler) -> dict[str, Any]:
    """Everything that the result depends on, as JSON has it."""
    given = {name: options[name] for name in ("model", "revision", "split", "items", "samples", "seed", "batch")}
    given |= {name: options[name] for name in ("reward", "pictures") if options[name]}
    settings = {
        **given,
        "task": describe(task),
        "parser": options.parser or task.parser,
        "sampler": describe(sampler),
        "dtype": options.dtype,
        "precision": runtime.precision,
        "processes": runtime.world,
        "sources": task.sources(options.split),
    }
    return json.loads(json.dumps(settings))


def _rescore(options: Namespace, about_task: Sequence[str], out: Path | None, words: Sequence[str]) -> None:
    needless = [name for name in ("model", "data", "answer_length") if options[name] is not None]
    needless += [word.removeprefix("--") for word in words[:1]] + (["resume"] if options.resume else [])
    if needless:
        raise UserError(f"--generations scores what is stored: leave out {', '.join(needless)}")
    task = _task(options, by_name(options.task)(), about_task)
    stored = read_generations(Path(options.generations))
    if _chosen(options, about_task, "protocol"):  # it holds against what the file says
        stored = replace(stored, about={**stored.about, "protocol": task.protocol})
    task = stored.asked(task)
    rewards = [task.named_reward(spec) for spec in options.reward]
    result = rescore(stored, task, options.parser, rewards)
    _tell(result, out, "generations")


def _tell(result: dict[str, Any], out: Path | None, split: str) -> None:
    if out is None:
        json.dump(result, sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        write_json(out, result)
    about = f"{result['task']} {split}, parser {result['parser']}"
    if result["score"] is not None:
        low, high = result["interval"]
        where = f"on {result['items']} items"
        print(f"{about}: {result['score']:.4f} [{low:.4f}, {high:.4f}] {where}", file=sys.stderr)
    for name, found in result.get("rewards", {}).items():
        if found["mean"] is not None:
            low, high = found["interval"]
            where = f"on {found['items']} items"
            print(f"{about}: mean {name} {found['mean']:.4f} [{low:.4f}, {high:.4f}] {where}", file=sys.stderr)


def _with_options(task: Task, words: Sequence[str]) -> Task:
    """The task with the options that `--task.OPTION VALUE` change."""
    if not words:
        return task
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=Task)
    start = ["--task", json.dumps(describe(task))]
    return instantiate(parser, parsed(parser, {"task": Task}, [*start, *words])).task


def _chosen(options: Namespace, about_task: Sequence[str], name: str) -> bool:
    """Whether the command line says it, as `--NAME` or `--task.NAME`."""
    return options[name] is not None or any(word.partition("=")[0] == f"--task.{name}" for word in about_task)


def _task(options: Namespace, task: Task, about_task: Sequence[str]) -> Task:
    """The task with what the command line changes; a protocol that it names brings its answer length."""
    changes: dict[str, Any] = {}
    if options.data is not None:
        if "data" not in asdict(task):
            raise UserError(f"--data: task {task.name} is generated and reads no file")
        changes["data"] = options.data
    if options.protocol is not None:
        if options.protocol not in task.protocols:
            raise UserError(f"--protocol {options.protocol}: task {task.name} has {', '.join(task.protocols)}")
        changes["protocol"] = options.protocol
    task = _with_options(replace(task, **changes), about_task)
    length = options.answer_length
    if _chosen(options, about_task, "protocol") and not _chosen(options, about_task, "answer_length"):
        length = task.asked_as.answer_length
    return task if length is None else replace(task, answer_length=length)
