"""The progress of a long command: a live bar in a terminal, a line now and then elsewhere. Goes to stderr."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_SHOWN = (
    ("train/loss", "loss", "{:.3f}"),
    ("rollout/reward", "reward", "{:.2f}"),
    ("rollout/success", "success", "{:.2f}"),
    ("update/kl", "kl", "{:.3f}"),
    ("update/clip_fraction", "clip", "{:.2f}"),
    ("rollout/zero_std_share", "equal", "{:.2f}"),
    ("rollout/tokens_per_second", "tok/s", "{:,.0f}"),
    ("train/tokens_per_second", "tok/s", "{:,.0f}"),
    ("eval/success", "validation", "{:.3f}"),
)
_QUIET_SECONDS = 15.0


class Progress:
    """Shows the steps of a run and the metrics that one watches.

    Args:
        kind: what is being done, e.g. "train".
        total, done: steps in all, and steps that are finished already.
        shown: false on all processes but the main one.
    """

    def __init__(self, kind: str, total: int, done: int = 0, shown: bool = True):
        self.console = Console(stderr=True)
        self.live = shown and self.console.is_terminal
        self.shown, self.kind, self.total = shown, kind, total
        self.last, self.started, self.first = 0.0, time.monotonic(), done
        self.validation: dict[str, float] = {}
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task(kind, total=total, completed=done, metrics="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.bar.stop()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """After a step."""
        if "eval/success" in metrics:
            self.validation = {"eval/success": metrics["eval/success"]}
        line = describe({**self.validation, **metrics})
        self.bar.update(self.task, completed=step, metrics=line)
        now = time.monotonic()
        due = now - self.last > _QUIET_SECONDS or step == self.total or "eval/success" in metrics
        if self.shown and not self.live and due:
            self.last = now
            left = (now - self.started) / max(1, step - self.first) * (self.total - step)
            self.console.print(
                f"{self.kind} {step}/{self.total}  {line}  {left:.0f} s left", highlight=False, soft_wrap=True
            )

    def expect(self, total: int) -> None:
        """Sets the number of items, once it is known."""
        self.bar.update(self.task, total=total)

    def advance(self, count: int) -> None:
        """After `count` more items of something that has no metrics."""
        self.bar.update(self.task, advance=count)


def describe(metrics: Mapping[str, float]) -> str:
    """The metrics one watches, as short text."""
    return "  ".join(f"{label} {form.format(metrics[key])}" for key, label, form in _SHOWN if key in metrics)
