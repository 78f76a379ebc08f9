"""What happens when numbers, memory or people get in the way of a run."""

import signal
import sys
import threading
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import torch

from unmask.errors import RunError, UserError


@dataclass(frozen=True)
class Guard:
    """What happens when numbers go wrong.

    Args:
        nonfinite: logits, loss or gradient that are no number: stop, or skip the answers or the update concerned and go
            on. Either way the rows behind it are kept in `failures/`.
        max_kl: stop after a step whose KL to the start policy exceeds this; null never stops.
        report_grad_norm: report a gradient norm above this.
        report_constant_reward: report when no group had two different rewards for so many steps; 0 never reports.
    """

    nonfinite: Literal["stop", "skip"] = "stop"
    max_kl: float | None = None
    report_grad_norm: float = 100.0
    report_constant_reward: int = 10

    def __post_init__(self):
        if self.max_kl is not None and not self.max_kl > 0:
            raise UserError(f"guard.max_kl must be positive, or null, not {self.max_kl}")
        if not self.report_grad_norm > 0 or self.report_constant_reward < 0:
            raise UserError("guard.report_grad_norm must be positive, report_constant_reward not negative")


class Interrupted(RunError):
    """The user or the scheduler asked the run to stop."""


class Interruption:
    """Ctrl-C and SIGTERM as a request to stop at the next safe place; a second Ctrl-C stops at once.

    A launcher may send both signals for one Ctrl-C, so a SIGTERM never counts as the second one.
    """

    def __init__(self):
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            print("unmask: stopping at the next safe place, then saving; Ctrl-C stops at once", file=sys.stderr)
        self.asked = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a batch did not fit; the CPU's allocator has no exception of its own."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator: can't allocate memory" in str(error)


def lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
