"""Supervised fine-tuning: the same scoring path as reinforcement learning, with weights that come from data."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.errors import UserError
from unmask.random import Random
from unmask.run import Run, RunConfig, order
from unmask.tasks.base import Row
from unmask.types import Canvas, View
from unmask.views.counts import ExactCounts
from unmask.views.score import score


@dataclass(frozen=True, kw_only=True)
class SFTConfig(RunConfig):
    """Settings of supervised fine-tuning on the `completion` of a task's training rows.

    Args:
        batch: rows per update, over all processes.
        loss: per_token: sum of CE / p over all answer tokens of the batch (d1); per_answer: mean per answer, then over
            answers (LLaDA's guideline).
        train_tail: the filling after the end token is a target too: this is how LLaDA-type models learn to stop.
        lowest_ratio: floor of the mask probability p.
        stratified: mask ratios are spread evenly over the batch instead of drawn independently.
        counts: how pictures are masked: exact counts, and the loss is the mean over all masked slots of the batch; null
            masks and weighs as `loss` and `lowest_ratio` say.
        blank_share: share of the rows that are trained without their prompt, for classifier-free guidance.
    """

    batch: int = 64
    loss: Literal["per_token", "per_answer"] = "per_token"
    train_tail: bool = True
    lowest_ratio: float = 1e-3
    stratified: bool = True
    counts: ExactCounts | None = None
    blank_share: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.batch < 1:
            raise UserError(f"batch must be at least 1, not {self.batch}")
        if not 0 < self.lowest_ratio <= 1:
            raise UserError(f"lowest_ratio must be in (0, 1], not {self.lowest_ratio}")
        if not 0 <= self.blank_share <= 1:
            raise UserError(f"blank_share must be in [0, 1], not {self.blank_share}")


def times(config: SFTConfig, step: int, index: Tensor) -> Float[Tensor, "b"]:
    """A time t for each row, uniform on (0, 1).

    Stratified: t_i = (t_0 + i / batch) mod 1 with one t_0 per step, uniform for each row by itself (MDLM's
    low-discrepancy sampler).
    """
    root = Random.root(config.seed, "level", step, device=index.device)
    spread = (root.uniform(1) + index / config.batch) % 1.0
    return spread if config.stratified else root.fold(index).uniform(1)[:, 0]


def ratios(config: SFTConfig, step: int, index: Tensor) -> Float[Tensor, "b"]:
    """Mask probability of each row: p = (1 - lowest) t + lowest."""
    return (1 - config.lowest_ratio) * times(config, step, index) + config.lowest_ratio


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
    if config.batch % run.runtime.world:
        raise UserError(f"batch {config.batch} must be a multiple of the {run.runtime.world} processes")
    rows, device = config.task.rows("train"), run.runtime.device
    local = config.batch // run.runtime.world

    with run:
        for step, metrics in run.steps("sft"):
            clock = time.perf_counter()
            first = (step - 1) * config.batch + run.runtime.rank * local
            batch = [rows[index] for index in order(rows, config.seed, range(first, first + local))]
            canvas, x, filled = _encode(run, batch)

            index = torch.arange(first, first + local, device=device)
            random = Random.root(config.seed, "corrupt", step, device=device).fold(index)
            canvas = without_prompts(canvas, config.blank_share, random.fold(1))
            view, weight, denominator = _hide(config, step, index - (step - 1) * config.batch, filled, random)
            denominator = run.runtime.sum(denominator)

            def loss_of(part: Tensor, canvas=canvas, x=x, view=view, weight=weight, total=denominator) -> Tensor:
                return -(weight[part] * score(run.learner.policy, canvas[part], x[part], view[part])).sum() / total

            metrics["train/loss"] = _descend(run, loss_of, torch.arange(local, device=device))
            metrics["train/learning_rate"] = run.learner.learning_rate
            norm = run.learner.clip()
            sound = math.isfinite(norm) and math.isfinite(metrics["train/loss"])
            if sound:
                metrics["train/grad_norm"] = norm
            else:
                del metrics["train/loss"]
                run.nonfinite(f"loss or gradient (norm {norm}) is", _unsound(run, batch, loss_of))
                metrics["train/skipped"] = 1.0
            run.learner.update(skip=not sound)
            metrics["train/tokens_per_second"] = x.numel() * run.runtime.world / (time.perf_counter() - clock)
        run.finish()
    return run


def _hide(
    config: SFTConfig, step: int, index: Tensor, filled: Bool[Tensor, "b t"], random: Random
) -> tuple[View, Float[Tensor, "b t"], Tensor]:
    """What is hidden, what each hidden token counts in this process, and what the sum is divided by."""
    if config.counts is not None:
        mask = config.counts.mask(times(config, step, index), random.uniform(filled.shape[1])) & filled
        return View(mask, mask.float()), mask.float(), mask.sum()
    target = torch.ones_like(filled) if config.train_tail else filled
    view = corrupt(ratios(config, step, index), target, random)
    if config.loss == "per_answer":
        return view, view.weight / target.sum(1, keepdim=True), torch.tensor(len(filled), device=filled.device)
    return view, view.weight, target.sum()


def _encode(run: Run, batch: list[Row]) -> tuple[Canvas, Tensor, Tensor]:
    """Prompts on a canvas, answers, and which answer tokens are not filling."""
    missing = next((row for row in batch if row.get("completion") is None), None)
    if missing is not None:
        raise UserError(f"row {missing.get('id')} of task {run.task.name} has no completion to learn from")
    canvas = run.modality.encode([row["prompt"] for row in batch], run.slots)
    try:
        x, filled = run.modality.encode_answers([row["completion"] for row in batch], run.slots)
    except UserError as error:
        raise UserError(f"task {run.task.name}: {error}; raise task.answer_length or drop the row") from error
    return canvas.to(run.runtime.device), x.to(run.runtime.device), filled.to(run.runtime.device)


def _descend(run: Run, loss_of: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    """The gradient of the loss, micro-batch by micro-batch; returns the loss over all processes."""
    while True:
        size = run.micro_batch or len(rows)
        parts = rows.split(size)
        total = torch.zeros((), device=rows.device)
        try:
            for number, part in enumerate(parts, 1):
                with run.learner.accumulating(number == len(parts)):
                    loss = loss_of(part)
                    run.learner.backward(loss)
                total += loss.detach()
            return float(run.runtime.sum(total))
        except (RuntimeError, MemoryError) as error:
            run.micro_batch = run.smaller(error, "micro_batch", min(size, len(rows)))
        run.learner.forget()


def _unsound(run: Run, batch: list[Row], loss_of: Callable[[Tensor], Tensor]) -> list[Row]:
    """The rows whose loss is no number."""
    with torch.no_grad():
        losses = [float(loss_of(torch.tensor([i], device=run.runtime.device))) for i in range(len(batch))]
    bad = [row for row, loss in zip(batch, losses, strict=True) if not math.isfinite(loss)]
    return [row | {"completion": run.modality.stored(row["completion"])} for row in bad]
