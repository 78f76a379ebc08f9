"""Supervised fine-tuning: the same scoring path as reinforcement learning, with weights that come from data."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.errors import UserError
from unmask.random import Random
from unmask.run import Run, RunConfig
from unmask.stream import order
from unmask.tasks.base import ENDLESS, Generated, Row, Task
from unmask.types import Canvas, Policy, View
from unmask.views.counts import ExactCounts
from unmask.views.score import score


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is learnt from: the `completion` of a task's training rows, how they are masked and what they count.

    Args:
        task: its rows.
        batch: rows per update, over all processes.
        weight: of its loss.
        loss: per_token: sum of CE / p over all answer tokens of the batch (d1); per_answer: mean per answer, then over
            answers (LLaDA's guideline).
        train_tail: the filling after the end token is a target too: this is how LLaDA-type models learn to stop.
        lowest_ratio: floor of the mask probability p.
        stratified: mask ratios are spread evenly over the batch instead of drawn independently.
        counts: how pictures are masked: exact counts, and the loss is the mean over all masked slots of the batch; null
            masks and weighs as `loss` and `lowest_ratio` say.
        blank_share: share of the rows that are trained without their prompt, for classifier-free guidance.
        without_completion: rows that have none to learn from are refused before training, or left out.
    """

    task: Task
    batch: int = 64
    weight: float = 1.0
    loss: Literal["per_token", "per_answer"] = "per_token"
    train_tail: bool = True
    lowest_ratio: float = 1e-3
    stratified: bool = True
    counts: ExactCounts | None = None
    blank_share: float = 0.0
    without_completion: Literal["refuse", "leave_out"] = "refuse"

    def __post_init__(self):
        if self.batch < 1:
            raise UserError(f"batch must be at least 1, not {self.batch}")
        if self.weight <= 0:
            raise UserError(f"weight must be positive, not {self.weight}")
        if not 0 < self.lowest_ratio <= 1:
            raise UserError(f"lowest_ratio must be in (0, 1], not {self.lowest_ratio}")
        if not 0 <= self.blank_share <= 1:
            raise UserError(f"blank_share must be in [0, 1], not {self.blank_share}")


@dataclass(frozen=True, kw_only=True)
class SFTConfig(RunConfig, Lesson):
    """Settings of supervised fine-tuning.

    The main lesson is here; evaluation and the final model's notes are about its task.

    Args:
        also: further lessons of every update, for texts or for pictures, whatever the main one is for (MMaDA: pictures
            1, texts 0.1, texts about pictures 1). The loss is the weighted sum; each lesson keeps its own normaliser.
        code_folder: keeps the codes of pictures for other runs with the same image tokenizer; null: in memory only.
    """

    also: tuple[Lesson, ...] = ()
    code_folder: str | None = None

    def __post_init__(self):
        RunConfig.__post_init__(self)
        Lesson.__post_init__(self)

    def check_shares(self, processes: int) -> None:
        for lesson in (self, *self.also):
            if lesson.batch % processes:
                fits = -(-lesson.batch // processes) * processes
                raise UserError(
                    f"batch {lesson.batch} must be a multiple of the {processes} processes: set it to {fits}"
                )


def times(lesson: Lesson, root: Random, index: Tensor) -> Float[Tensor, "b"]:
    """A time t for each row of a batch, uniform on (0, 1); `root` is the place of the batch.

    Stratified: t_i = (t_0 + i / batch) mod 1 with one t_0 per step, uniform for each row by itself (MDLM's
    low-discrepancy sampler).
    """
    spread = (root.uniform(1) + index / lesson.batch) % 1.0
    return spread if lesson.stratified else root.fold(index).uniform(1)[:, 0]


def ratios(lesson: Lesson, root: Random, index: Tensor) -> Float[Tensor, "b"]:
    """Mask probability of each row: p = (1 - lowest) t + lowest."""
    return (1 - lesson.lowest_ratio) * times(lesson, root, index) + lesson.lowest_ratio


def corrupt(ratio: Float[Tensor, "b"], target: Bool[Tensor, "b t"], random: Random) -> View:
    """Each answer token hidden with probability p and weighted 1 / p: the expected loss is the ELBO's."""
    mask = (random.uniform(target.shape[1]) < ratio[:, None]) & target
    return View(mask, mask / ratio[:, None])


def without_prompts(canvas: Canvas, share: float, random: Random) -> Canvas:
    """The canvas with this share of its rows replaced by their unconditional twins, which are of the same length."""
    blank = canvas.blank
    if not share or blank is None:
        return canvas
    drop = random.uniform(1) < share
    everything = torch.ones_like(canvas.ids, dtype=torch.bool)
    seen, seen_blank = (everything if one.attend is None else one.attend for one in (canvas, blank))
    return replace(canvas, ids=blank.ids.where(drop, canvas.ids), attend=seen_blank.where(drop, seen))


def sft(config: SFTConfig, resume: bool = False) -> Run:
    """Fine-tunes; the run directory holds everything that comes of it.

    Args:
        resume: continue the run that `config.out` holds, if it does.
    """
    run = Run(config, updates_per_step=1, reference=False, resume=resume)
    if run.finished:
        return run
    if config.code_folder is not None:
        if run.model.images is None:
            raise UserError(f"code_folder: {config.model} is of family {run.model.family.name}, which has no pictures")
        run.model.codes.folder = Path(config.code_folder).expanduser()
    courses = [Course(run, lesson, number) for number, lesson in enumerate((config, *config.also))]
    names = [f"{course.task.name}-{number}" for number, course in enumerate(courses, 1)]

    with run:
        for step, metrics in run.steps("sft"):
            clock = time.perf_counter()
            lots = [course.lot(step) for course in courses]
            losses = _descend(run, lots)
            loss = sum(lot.weight * loss for lot, loss in zip(lots, losses, strict=True))
            learning_rate, norm = run.learner.learning_rate, run.learner.clip()
            sound = math.isfinite(norm) and math.isfinite(loss)
            if sound:
                metrics |= {"train/loss": loss, "train/grad_norm": norm}
                metrics |= {f"train/loss-{n}": one for n, one in zip(names, losses, strict=True) if len(lots) > 1}
            else:
                bad = [row for lot in lots for row in lot.unsound()]
                run.nonfinite(f"loss or gradient (norm {norm}) is", bad)
                metrics["train/skipped"] = 1.0
            metrics["train/learning_rate"] = learning_rate
            run.learner.update(skip=not sound)
            tokens = sum(lot.x.numel() for lot in lots) * run.runtime.world
            metrics["train/tokens_per_second"] = tokens / (time.perf_counter() - clock)
        run.finish()
    return run


def _demonstrated(lesson: Lesson) -> Sequence[Row]:
    """The training rows that have a completion. Of an endless set the first one speaks for all."""
    task = lesson.task
    rows = task.rows("train")
    looked_at = rows[:1] if len(rows) == ENDLESS else rows
    kept = [index for index, row in enumerate(looked_at) if row.get("completion") is not None]
    if len(kept) == len(looked_at):
        return rows
    if not kept:
        raise UserError(f"the training rows of task {task.name} have no completion to learn from: name other data")
    if lesson.without_completion == "refuse":
        first = next(number for number, index in enumerate([*kept, len(rows)]) if number != index)
        raise UserError(
            f"task {task.name}: {len(rows) - len(kept)} of {len(rows)} training rows have no completion to learn from, "
            f"the first is {rows[first].get('id')}; add them, or set without_completion to leave_out"
        )
    return Generated(lambda i: rows[kept[i]], len(kept))


class Course:
    """A lesson in a run: its rows, and the model asked for what they show.

    Raises:
        UserError: a model that does not make such answers; rows without a completion, unless they are to be left out.
    """

    def __init__(self, run: Run, lesson: Lesson, number: int):
        self.run, self.lesson, self.task = run, lesson, lesson.task
        self.rows, self.local = _demonstrated(lesson), lesson.batch // run.runtime.world
        self.model = run.model.answering(lesson.task.answers)
        self._own = f" {number}" if number else ""  # draws of the main lesson do not depend on the others
        self._encode(list(self.rows[:1]))  # what cannot be had is told before anything is written

    def lot(self, step: int) -> "Lot":
        """This process's share of a step's batch."""
        lesson, seed, device = self.lesson, self.run.config.seed, self.run.runtime.device
        first = (step - 1) * lesson.batch + self.run.runtime.rank * self.local
        rows = [self.rows[index] for index in order(self.rows, seed, range(first, first + self.local))]
        canvas, x, filled = self._encode(rows)
        index = torch.arange(first, first + self.local, device=device)
        random = Random.root(seed, f"corrupt{self._own}", step, device=device).fold(index)
        levels = Random.root(seed, f"level{self._own}", step, device=device)
        canvas = without_prompts(canvas, lesson.blank_share, random.fold(1))
        view, weight, denominator = _hide(lesson, levels, index - (step - 1) * lesson.batch, filled, random)
        policy = self.run.learner.speaking(self.model.policy)
        return Lot(self, rows, policy, canvas, x, view, weight, self.run.runtime.sum(denominator))

    def _encode(self, rows: list[Row]) -> tuple[Canvas, Tensor, Tensor]:
        """Prompts on a canvas, answers, and which answer tokens are not filling."""
        task, modality, slots = self.task, self.model.modality, self.task.answer_length
        canvas = modality.encode([row["prompt"] for row in rows], slots)
        try:
            x, filled = modality.encode_answers([row["completion"] for row in rows], slots)
        except UserError as error:
            raise UserError(f"task {task.name}: {error}; raise task.answer_length or drop the row") from error
        device = self.run.runtime.device
        return canvas.to(device), x.to(device), filled.to(device)


@dataclass(frozen=True)
class Lot:
    """A process's rows of one lesson in one update, masked.

    Args:
        course: whose rows these are.
        rows: as the task has them.
        policy: in training.
        canvas, x, view: prompts, answers, and what of them is hidden.
        per_token: what each hidden token counts ...
        total: ... and what their sum is divided by, over all processes.
    """

    course: Course
    rows: list[Row]
    policy: Policy
    canvas: Canvas
    x: Int[Tensor, "b t"]
    view: View
    per_token: Float[Tensor, "b t"]
    total: Tensor

    @property
    def weight(self) -> float:
        """Of the loss."""
        return self.course.lesson.weight

    def loss(self, rows: Int[Tensor, "n"]) -> Tensor:
        """What these rows add to the loss of the batch, without the weight."""
        scored = score(self.policy, self.canvas[rows], self.x[rows], self.view[rows])
        return -(self.per_token[rows] * scored).sum() / self.total

    @torch.no_grad()
    def unsound(self) -> list[Row]:
        """The rows whose loss is no number, as records keep them."""
        losses = [float(self.loss(torch.tensor([i], device=self.x.device))) for i in range(len(self.rows))]
        bad = [row for row, loss in zip(self.rows, losses, strict=True) if not math.isfinite(loss)]
        stored = self.course.model.modality.stored
        return [row | {"completion": stored(row["completion"])} for row in bad]


def _hide(
    lesson: Lesson, levels: Random, index: Tensor, filled: Bool[Tensor, "b t"], random: Random
) -> tuple[View, Float[Tensor, "b t"], Tensor]:
    """What is hidden, what each hidden token counts in this process, and what the sum is divided by."""
    if lesson.counts is not None:
        mask = lesson.counts.mask(times(lesson, levels, index), random.uniform(filled.shape[1])) & filled
        return View(mask, mask.float()), mask.float(), mask.sum()
    target = torch.ones_like(filled) if lesson.train_tail else filled
    view = corrupt(ratios(lesson, levels, index), target, random)
    if lesson.loss == "per_answer":
        return view, view.weight / target.sum(1, keepdim=True), torch.tensor(len(filled), device=filled.device)
    return view, view.weight, target.sum()


def _descend(run: Run, lots: Sequence[Lot]) -> list[float]:
    """The gradient of the weighted losses, micro-batch by micro-batch; returns each loss over all processes."""
    while True:
        parts = [
            (number, rows)
            for number, lot in enumerate(lots)
            for rows in torch.arange(len(lot.rows), device=lot.x.device).split(run.micro_batch or len(lot.rows))
        ]
        totals = torch.zeros(len(lots), device=run.runtime.device)
        try:
            for place, (number, rows) in enumerate(parts, 1):
                with run.learner.accumulating(place == len(parts)):
                    loss = lots[number].loss(rows)
                    run.learner.backward(lots[number].weight * loss)
                totals[number] += loss.detach()
            return run.runtime.sum(totals).tolist()
        except (RuntimeError, MemoryError) as error:
            run.micro_batch = run.smaller(error, "micro_batch", max(len(rows) for _, rows in parts))
        run.learner.forget()
