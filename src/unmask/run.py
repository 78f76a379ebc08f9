"""What every training run shares: from claiming its directory to its final model.

The loops of `rl.py` and `supervised.py` say what a step does; a `Run` carries it: model, optimizer, evaluation on the
validation split, checkpoints, exact resume, progress.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmask.describe import describe, plain
from unmask.errors import RunError, UserError
from unmask.evaluation import for_samples, measure, rows_of
from unmask.models import Model, load
from unmask.models.lora import LoRA, merged_state
from unmask.models.policy import BackbonePolicy
from unmask.models.scratch import Scratch
from unmask.progress import Progress
from unmask.run_directory import RunDirectory, environment
from unmask.runtime import Compute, Learner, Optimizer, Runtime
from unmask.samplers.base import Sampler
from unmask.tasks.base import Row, Task


@dataclass(frozen=True)
class Evaluation:
    """Evaluation on the validation split while training; the test split is never read here.

    Args:
        every: steps between evaluations; 0 is never.
        items: validation rows; null is all.
        stop_at: stop once the success reaches this share; null trains to the end.
        keep_best: the final model is the one of the best evaluation instead of the last step.
        batch: answers per forward.
    """

    every: int = 0
    items: int | None = None
    stop_at: float | None = None
    keep_best: bool = False
    batch: int = 256

    def __post_init__(self):
        if self.every < 0 or self.batch < 1:
            raise UserError("evaluation.every must not be negative and evaluation.batch must be positive")
        if not self.every and (self.stop_at is not None or self.keep_best):
            raise UserError("evaluation.stop_at and keep_best need evaluation.every > 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every run.

    Args:
        task: rows, rewards and metric.
        sampler: how answers are drawn; evaluation uses it at temperature 0.
        out: the run directory.
        model: directory, run directory, hub id or builtin:NAME; null where `scratch` makes one.
        revision: of a hub id.
        scratch: train a new small model for a built-in world from nothing.
        adapter: train LoRA adapters; null trains all weights.
        optimizer: AdamW and its schedule.
        compute: device, precision, batch sizes.
        evaluation: on the validation split.
        steps: training steps.
        save_every: steps between checkpoints; 0 saves only at the end.
        keep_checkpoints: checkpoints that are kept.
        trackers: mirrors of metrics.jsonl, e.g. tensorboard, wandb.
        seed: of every random number.
    """

    task: Task
    sampler: Sampler
    out: str
    model: str | None = None
    revision: str | None = None
    scratch: Scratch | None = None
    adapter: LoRA | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    compute: Compute = field(default_factory=Compute)
    evaluation: Evaluation = field(default_factory=Evaluation)
    steps: int = 100
    save_every: int = 0
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if (self.model is None) == (self.scratch is None):
            raise UserError("name a model with --model, or a new one with scratch: exactly one of the two")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be in [0, 2^63), not {self.seed}")
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, not {self.steps}")
        if self.save_every < 0 or self.keep_checkpoints < 1:
            raise UserError("save_every must not be negative, keep_checkpoints at least 1")


class Run:
    """A run in progress.

    Args:
        config: its settings.
        updates_per_step: optimizer updates of one step.
        reference: keep the start policy.
        resume: go on from the last checkpoint if there is one.
    """

    def __init__(self, config: RunConfig, updates_per_step: int, reference: bool, resume: bool):
        self.config = config
        self.runtime = Runtime(config.compute, config.trackers, Path(config.out))
        self.directory = RunDirectory(config.out, self.runtime.main)
        self._settings = self._resolved()
        self.directory.check(self._settings, resume)
        self.finished = self.directory.finished
        self.step, self.best, self.best_weights, self.seconds = 0, -math.inf, None, 0.0
        if self.finished:
            return
        self.model = self._model()
        self.modality = self.model.modality
        self.task, self.slots = config.task, config.task.answer_length
        self.success = self.model.reading(config.task.success)
        self.learner = Learner(
            self.runtime,
            self._module(),
            self._policy,
            config.optimizer,
            config.steps * updates_per_step,
            reference,
        )
        self.stop = False
        checkpoint = self.directory.latest_checkpoint() if resume else None
        if checkpoint is not None:
            state, self.best_weights = self.learner.load(checkpoint)
            self.step, self.seconds, self.stop = state["step"], state["seconds"], state["stop"]
            self.best = -math.inf if state["best"] is None else state["best"]
        self.validation = rows_of(self.task, "validation", config.evaluation.items) if config.evaluation.every else []

    def _resolved(self) -> dict[str, Any]:
        """The settings with everything in place of `auto`."""
        settings = plain(self.config)
        settings["compute"] |= {
            "device": self.runtime.device.type,
            "dtype": self._dtype(),
            "precision": self.runtime.precision,
            "threads": torch.get_num_threads(),
        }
        return settings

    def _dtype(self) -> str:
        """Of the weights in memory; auto is the checkpoint's own, which is good enough where adapters are trained."""
        auto = self.config.compute.dtype == "auto" and self.config.adapter is None
        return "float32" if auto else self.config.compute.dtype

    def _model(self) -> Model:
        config, compute = self.config, self.config.compute
        if config.scratch is not None:
            if config.task.alphabet is None:
                raise UserError(f"scratch makes models for built-in worlds; task {config.task.name} needs --model")
            model = config.scratch.build(config.task.alphabet, config.seed)
        else:
            model = load(config.model or "", revision=config.revision)
        if self._dtype() != "auto":
            model.backbone.to(getattr(torch, self._dtype()))
        model.backbone.checkpointing = compute.checkpointing
        return model

    def _module(self) -> torch.nn.Module:
        if self.config.adapter is None:
            return self.model.backbone.requires_grad_(True)
        return self.config.adapter.attach(self.model.backbone, self.config.seed)

    def _policy(self, forward, autocast) -> BackbonePolicy:
        return self.model.policy(forward, autocast)

    def steps(self, kind: str) -> Iterator[tuple[int, dict[str, float]]]:
        """The steps that are left, each with the row of metrics to fill; evaluates, saves and reports in between."""
        self.directory.claim(self._settings, environment(str(self.runtime.device)))
        self.directory.rewind(self.step)
        self.runtime.start_trackers()
        with Progress(kind, self.config.steps, self.step, self.runtime.main) as progress:
            while self.step < self.config.steps and not self.stop:
                start = time.perf_counter()
                row: dict[str, float] = {}
                yield self.step + 1, row
                self.step += 1
                row["time/step"] = time.perf_counter() - start
                last = self.step == self.config.steps
                every = self.config.evaluation.every
                if every and (last or self.step % every == 0):
                    self._evaluate(row)
                self.seconds += time.perf_counter() - start
                bad = [name for name, value in row.items() if not math.isfinite(value)]
                if bad:
                    raise RunError(f"step {self.step}: {bad[0]} is {row[bad[0]]}; the last checkpoint is untouched")
                self.directory.append(self.directory.metrics, [{"step": self.step, **row}])
                self.runtime.track(row, self.step)
                progress.show(self.step, row)
                if self.config.save_every and self.step % self.config.save_every == 0 and not last:
                    self._save()

    def _evaluate(self, row: dict[str, float]) -> None:
        evaluation = self.config.evaluation
        outcome = measure(
            self.learner.frozen,
            self.modality,
            self.validation,
            self.success,
            for_samples(self.config.sampler, 1),
            self.slots,
            self.runtime,
            batch=evaluation.batch,
        )
        if not outcome.judged:
            if evaluation.keep_best or evaluation.stop_at is not None:
                raise UserError(f"task {self.task.name} has no metric: evaluation.keep_best and stop_at need one")
            return
        row["eval/success"], (row["eval/low"], row["eval/high"]) = outcome.score, outcome.interval
        if evaluation.keep_best and outcome.score > self.best:
            self.best, self.best_weights = outcome.score, self.learner.weights()
        self.stop = evaluation.stop_at is not None and outcome.score >= evaluation.stop_at

    def _save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "stop": self.stop,
            "best": self.best if math.isfinite(self.best) else None,
        }
        self.learner.save(self.directory.checkpoints / f"step-{self.step}", state, self.best_weights)
        if self.runtime.main:
            self.directory.retain(self.config.keep_checkpoints)

    def finish(self) -> None:
        """Writes the last checkpoint and the final model."""
        self._save()
        if self.best_weights is not None:
            self.learner.load_weights(self.best_weights)
        if self.runtime.main:
            adapted = self.config.adapter is not None
            self.model.metadata = {
                **self.model.metadata,
                "task": describe(self.config.task),
                "sampler": describe(self.config.sampler),
                "answer_length": self.slots,
            }
            self.model.save(self.directory.model, state=merged_state(self.learner.module) if adapted else None)
        self.runtime.close()
        self.runtime.wait()


def order(rows: Sequence[Row], seed: int, positions: Sequence[int]) -> list[int]:
    """Indices of the rows at these positions of a stream that permutes the split anew in every pass."""
    n, indices = len(rows), []
    if not n:
        raise UserError("the training split is empty")
    for position in positions:
        epoch, place = divmod(position, n)
        indices.append(int(_permutation(seed, epoch, n)[place]))
    return indices


_cache: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A pure function of its arguments; the last one is kept, because a step asks for many of its entries."""
    if (seed, epoch, n) not in _cache:
        _cache.clear()
        _cache[seed, epoch, n] = np.random.default_rng([seed, epoch]).permutation(n)
    return _cache[seed, epoch, n]
