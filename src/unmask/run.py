"""What every training run shares: from claiming its directory to its final model.

The loops of `rl.py` and `supervised.py` say what a step does; a `Run` carries it: model, optimizer, evaluation on the
validation split, checkpoints, exact resume, progress.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch

from unmask.describe import describe, plain
from unmask.errors import RunError, UserError
from unmask.evaluation import for_samples, measure, rows_of
from unmask.guard import Guard, Interrupted, Interruption, is_out_of_memory, lost_peer
from unmask.learner import Learner, on_main
from unmask.models import Model, load
from unmask.models.lora import LoRA, merged_state
from unmask.models.policy import BackbonePolicy
from unmask.models.scratch import Scratch
from unmask.progress import Progress
from unmask.rewards.base import Weighted
from unmask.run_directory import RunDirectory, environment, read_jsonl, writing
from unmask.runtime import Compute, Optimizer, Runtime
from unmask.samplers.base import Sampler
from unmask.tasks.base import Task
from unmask.tasks.own import Unjudged

T = TypeVar("T")


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
        if self.stop_at is not None and not 0 <= self.stop_at <= 1:
            raise UserError(f"evaluation.stop_at is a share in [0, 1], not {self.stop_at}")
        if not self.every and (self.stop_at is not None or self.keep_best):
            raise UserError("evaluation.stop_at and keep_best need evaluation.every > 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig(ABC):
    """Settings of every run.

    Args:
        task: rows, rewards and metric.
        sampler: how answers are drawn; evaluation uses it at temperature 0.
        out: the run directory.
        model: directory, run directory, hub id or builtin:NAME; null where `scratch` makes one.
        revision: of a hub id.
        image_tokenizer: its folder; null is the model's own.
        scratch: train a new small model for a built-in world from nothing.
        adapter: train LoRA adapters; null trains all weights.
        optimizer: AdamW and its schedule.
        compute: device, precision, batch sizes.
        evaluation: on the validation split.
        guard: what happens when numbers go wrong.
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
    image_tokenizer: str | None = None
    scratch: Scratch | None = None
    adapter: LoRA | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    compute: Compute = field(default_factory=Compute)
    evaluation: Evaluation = field(default_factory=Evaluation)
    guard: Guard = field(default_factory=Guard)
    steps: int = 100
    save_every: int = 0
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if (self.model is None) == (self.scratch is None):
            raise UserError("name a model with --model, or a new one with scratch: exactly one of the two")
        if self.scratch is not None and self.image_tokenizer is not None:
            raise UserError("image_tokenizer is for a model that is there; a new one (scratch) has its world's own")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be in [0, 2^63), not {self.seed}")
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, not {self.steps}")
        if self.save_every < 0 or self.keep_checkpoints < 1:
            raise UserError("save_every must not be negative, keep_checkpoints at least 1")
        if isinstance(self.task.success, Unjudged) and (
            self.evaluation.keep_best or self.evaluation.stop_at is not None
        ):
            raise UserError(f"task {self.task.name} has no metric: evaluation.keep_best and stop_at need one")

    @abstractmethod
    def check_shares(self, processes: int) -> None:
        """Raises UserError where so many processes cannot share the work of an update evenly."""


class Run:
    """A run in progress: `with run:` around its steps and `finish()`.

    Args:
        config: its settings.
        updates_per_step: optimizer updates of one step.
        reference: keep the start policy.
        resume: go on from the last checkpoint if there is one.
        rewards: what training maximises; validation reports their means where the task has no metric.
    """

    def __init__(
        self,
        config: RunConfig,
        updates_per_step: int,
        reference: bool,
        resume: bool,
        rewards: Sequence[Weighted] = (),
    ):
        self.config = config
        self.runtime = Runtime(config.compute, config.trackers, Path(config.out))
        self.directory = RunDirectory(config.out, self.runtime.main)
        settings = self._resolved(config.compute.dtype)
        self.directory.check(settings, resume)
        self.finished = self.directory.finished
        self.runtime.wait()  # all have looked before the first one writes
        self.step, self.best, self.best_weights, self.seconds = 0, -math.inf, None, 0.0
        self.interruption, self.progress = Interruption(), None
        self.micro_batch, self.rollout_batch = config.compute.micro_batch, config.compute.rollout_batch
        if self.finished:
            return
        config.check_shares(self.runtime.world)
        self.model = self._model()
        self._settings = self._resolved(str(self.model.dtype).removeprefix("torch."))
        self.modality = self.model.modality
        self.task, self.slots = config.task, config.task.answer_length
        self.success = self.model.reading(config.task.success)
        self.rewards = [Weighted(self.model.reading(given.reward), given.weight) for given in rewards]
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
        self.directory.room(self._checkpoint_bytes + self._model_bytes, "the run")

    def _resolved(self, dtype: str) -> dict[str, Any]:
        """The settings with everything in place of `auto`; `dtype` of the weights."""
        settings = plain(self.config)
        settings["compute"] |= {
            "device": self.runtime.device.type,
            "dtype": dtype,
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
            task = config.task
            if task.alphabet is None:
                raise UserError(f"scratch makes models for built-in worlds; task {task.name} needs --model")
            model = config.scratch.build(task.alphabet, config.seed, task.image_tokenizer, task.answer_length)
        else:
            model = load(config.model or "", revision=config.revision, image_tokenizer=config.image_tokenizer)
        if self._dtype() != "auto":
            model.backbone.to(getattr(torch, self._dtype()))
        model.backbone.checkpointing = compute.checkpointing
        return model.answering(config.task.answers)

    def _module(self) -> torch.nn.Module:
        if self.config.adapter is None:
            return self.model.backbone.requires_grad_(True)
        return self.config.adapter.attach(self.model.backbone, self.config.seed)

    def _policy(self, forward, autocast) -> BackbonePolicy:
        return self.model.policy(forward, autocast)

    @property
    def _checkpoint_bytes(self) -> int:
        best = self.config.evaluation.keep_best
        return self.learner.state_bytes * 4 // 3 if best else self.learner.state_bytes

    @property
    def _model_bytes(self) -> int:
        return sum(p.numel() * self.model.dtype.itemsize for p in self.model.backbone.parameters()) + 2**20

    def __enter__(self) -> Self:
        self.interruption.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Saves what an interrupted run has; says in one line that another process is gone."""
        self.interruption.__exit__(kind, error, traceback)
        if isinstance(error, Interrupted):
            if self.step:
                self._save()
            saved = f"the checkpoint of step {self.step} is saved" if self.step else "no step was finished"
            raise Interrupted(f"interrupted in step {self.step + 1}: {saved}; --resume goes on") from None
        if error is not None and self.runtime.world > 1 and lost_peer(error):
            raise RunError(
                f"step {self.step + 1}, rank {self.runtime.rank}: another process is gone (its own message says why); "
                "--resume goes on from the last checkpoint"
            ) from error

    def steps(self, kind: str) -> Iterator[tuple[int, dict[str, float]]]:
        """The steps that are left, each with the row of metrics to fill; evaluates, saves and reports in between."""
        self.directory.claim(self._settings, environment(str(self.runtime.device)))
        self.directory.rewind(self.step)
        self.flat = self._flat_steps()
        self.runtime.start_trackers()
        with Progress(kind, self.config.steps, self.step, self.runtime.main) as self.progress:
            while self.step < self.config.steps and not self.stop:
                start = time.perf_counter()
                row: dict[str, float] = {}
                yield self.step + 1, row
                row["time/step"] = time.perf_counter() - start
                last = self.step + 1 == self.config.steps
                every = self.config.evaluation.every
                if every and (last or (self.step + 1) % every == 0):
                    self._evaluate(row)
                self.step += 1
                self.seconds += time.perf_counter() - start
                bad = [name for name, value in row.items() if not math.isfinite(value)]
                if bad:
                    raise RunError(f"step {self.step}: {bad[0]} is {row[bad[0]]}; the last checkpoint is untouched")
                self.directory.append(self.directory.metrics, [{"step": self.step, **row}])
                self.runtime.track(row, self.step)
                self.progress.show(self.step, row)
                self._watch(row)
                if self.config.save_every and self.step % self.config.save_every == 0 and not last:
                    self._save()
                if not last:
                    self.breathe()

    def breathe(self) -> None:
        """A safe place: nothing has moved since the last finished step.

        Raises:
            Interrupted: a stop was asked for, in any process.
        """
        if self.runtime.any(self.interruption.asked):
            raise Interrupted

    def note(self, text: str) -> None:
        """Something that one should know, on the screen and in notes.jsonl."""
        self.directory.append(self.directory.notes, [{"step": self.step + 1, "note": text}])
        if self.runtime.main and self.progress is not None:
            self.progress.console.print(f"note: {text}", highlight=False, soft_wrap=True)

    def nonfinite(self, what: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keeps this process's rows behind a number that is none; every process must call it.

        Raises:
            RunError: unless such numbers are to be skipped.
        """
        step, rank = self.step + 1, self.runtime.rank
        if rows:
            self.directory.fail(f"step-{step}-rank-{rank}", [{"step": step, "rank": rank, **row} for row in rows])
        found = self.runtime.gather([(rank, len(rows))])
        where = ", ".join(f"rank {rank}: {count}" for rank, count in found if count) or "no single answer"
        message = f"step {step}: {what} not finite ({where}; see {self.directory.failures})"
        if self.config.guard.nonfinite == "stop":
            raise RunError(
                f"{message}; --resume with --guard.nonfinite skip leaves them out; or start anew, with a lower "
                "optimizer.lr"
            )
        self.note(f"{message}: skipped")

    def in_chunks(self, total: int, call: Callable[[slice], T]) -> list[T]:
        """What `call` makes of consecutive slices of `compute.rollout_batch` rows."""
        done, start = [], 0
        while start < total:
            size = self.rollout_batch or total
            try:
                done.append(call(slice(start, start + size)))
                start += size
            except (RuntimeError, MemoryError) as error:
                self.rollout_batch = self.smaller(error, "rollout_batch", min(size, total))
        return done

    def smaller(self, error: Exception, name: Literal["micro_batch", "rollout_batch"], size: int) -> int:
        """Half of a batch that did not fit.

        Raises:
            RunError: it is to stop, or there is nothing to halve.
            Exception: `error`, if it says something else.
        """
        if not is_out_of_memory(error):
            raise error
        what = f"step {self.step + 1}: out of memory with compute.{name} {size}"
        if self.config.compute.out_of_memory == "stop" or size == 1:
            way = "use a smaller one" if size > 1 else "use compute.checkpointing, shorter answers or adapters"
            raise RunError(f"{what}; {way} and --resume")
        self.note(f"{what}; going on with {size // 2}")
        return size // 2

    def _watch(self, row: Mapping[str, float]) -> None:
        """Reports what looks wrong in the metrics of the step that was just finished."""
        guard, step = self.config.guard, self.step
        norm = max(row.get(name, 0.0) for name in ("update/grad_norm", "train/grad_norm"))
        if norm > guard.report_grad_norm:
            self.note(f"step {step}: gradient norm {norm:.3g} is clipped to {self.config.optimizer.max_grad_norm:g}")
        self.flat = self.flat + 1 if row.get("rollout/zero_std_share") == 1 else 0
        if guard.report_constant_reward and self.flat == guard.report_constant_reward:
            self.note(f"no group had two different rewards for {self.flat} steps: there is nothing to learn from")
        kl = row.get("update/kl", 0.0)
        if guard.max_kl is not None and kl > guard.max_kl:
            raise RunError(f"step {step}: KL {kl:.3g} exceeds guard.max_kl {guard.max_kl:g}: stopped")

    def _flat_steps(self) -> int:
        """Steps in a row, up to the last one, in which no group had two different rewards."""
        count = 0
        for row in reversed(read_jsonl(self.directory.metrics)):
            if row.get("rollout/zero_std_share") != 1:
                break
            count += 1
        return count

    def _evaluate(self, row: dict[str, float]) -> None:
        evaluation = self.config.evaluation
        outcome = measure(
            self.learner.frozen,
            self.modality,
            self.validation,
            self.success,
            for_samples(self.config.sampler, 1, self.modality.greedy),
            self.slots,
            self.runtime,
            batch=evaluation.batch,
            rewards=[given.reward for given in self.rewards] if isinstance(self.success, Unjudged) else (),
        )
        row |= {f"eval/reward/{name}": mean for name, mean in outcome.reward_means().items()}
        if not outcome.judged:
            failed = [item.get("reason") for item in outcome.generations if item["status"] == "infra_error"]
            if failed:
                self.note(f"no answer of the evaluation could be judged ({failed[0]}): it does not count")
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
        folder = self.directory.checkpoints / f"step-{self.step}"
        if folder.exists():  # whole, since it has this name; the run was resumed from it
            return
        self.directory.room(self._checkpoint_bytes, f"checkpoint {folder.name}")
        self.learner.save(folder, state, self.best_weights)
        if self.runtime.main:
            self.directory.retain(self.config.keep_checkpoints)

    def finish(self) -> None:
        """Writes the last checkpoint and the final model."""
        self._save()
        if self.best_weights is not None:
            self.learner.load_weights(self.best_weights)
        state = None
        if self.config.adapter is not None or self.runtime.sharded:
            tensors = self.learner.module.state_dict()
            state = on_main(self.runtime, tensors) if self.runtime.sharded else tensors
        if self.runtime.main:
            self.directory.room(self._model_bytes, "the final model")
            self.model.metadata = {
                **self.model.metadata,
                "task": describe(self.config.task),
                "sampler": describe(self.config.sampler),
                "answer_length": self.slots,
                "answers": self.task.answers,
            }
            with writing(self.directory.model):
                self.model.save(
                    self.directory.model,
                    state=None if state is None else merged_state(self.learner.module, state),
                )
        self.runtime.close()
        self.runtime.wait()
