"""A reward in a thread of its own: requests that wait while it is busy are judged together."""

import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from unmask.errors import UserError
from unmask.rewards.base import Reward, Row, Score

MOST_WAITING = 1024
"""Completions that may wait for one reward; more are refused."""
_AT_ONCE = 256  # completions judged in one call, about

log = logging.getLogger(__name__)


class Busy(Exception):
    """Too much is waiting already."""


@dataclass
class _Asked:
    completions: Sequence[Any]
    rows: Sequence[Row]
    answer: Future[list[Score]] = field(default_factory=Future)


class Worker:
    """Calls one reward from one thread, so that a reward need not be safe for several.

    The reward is readied first, as a training run readies its rewards: `for_tokens`.

    Attributes:
        started: finished when the reward is ready, or with the error that keeps it from being so.
    """

    def __init__(self, reward: Reward):
        self.name, self.started = reward.label, Future[None]()
        self._reward, self._waiting = reward, queue.SimpleQueue[_Asked]()
        self._held, self._lock = 0, threading.Lock()
        threading.Thread(target=self._work, name=f"reward {self.name}", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether it can judge."""
        return self.started.done() and self.started.exception() is None

    def submit(self, completions: Sequence[Any], rows: Sequence[Row]) -> Future[list[Score]]:
        """The scores, when they are there; an exception of the reward is the future's.

        Raises:
            Busy: more than `MOST_WAITING` completions would wait.
        """
        with self._lock:
            if self._held and self._held + len(completions) > MOST_WAITING:
                raise Busy(f"{self._held} completions wait for reward {self.name}")
            self._held += len(completions)
        asked = _Asked(completions, rows)
        asked.answer.add_done_callback(lambda _: self._release(len(completions)))
        self._waiting.put(asked)
        return asked.answer

    def _release(self, count: int) -> None:
        with self._lock:
            self._held -= count

    def _work(self) -> None:
        try:
            self._reward = self._reward.for_tokens(())
        except BaseException as error:  # whoever waits for the start must hear of it, whatever it is
            self.started.set_exception(_harmless(error))
            return
        self.started.set_result(None)
        while True:
            batch = [self._waiting.get()]
            while sum(len(asked.completions) for asked in batch) < _AT_ONCE and not self._waiting.empty():
                batch.append(self._waiting.get())
            self._answer(batch)

    def _answer(self, batch: Sequence[_Asked]) -> None:
        """Judges all requests in one call, or, if that fails, one after the other: each fails for its own sake only."""
        scores = self._judge([c for a in batch for c in a.completions], [r for a in batch for r in a.rows])
        if isinstance(scores, Exception) and len(batch) > 1:
            for asked in batch:
                self._answer([asked])
            return
        for asked in batch:
            if isinstance(scores, Exception):
                asked.answer.set_exception(scores)
            else:
                asked.answer.set_result(scores[: len(asked.completions)])
                del scores[: len(asked.completions)]

    def _judge(self, completions: list[Any], rows: list[Row]) -> list[Score] | Exception:
        try:
            scores = list(self._reward(completions, rows))
            if len(scores) != len(completions):
                raise ValueError(f"{self.name} gave {len(scores)} scores for {len(completions)} completions")
        except BaseException as error:  # the thread must live on, whatever a reward does
            log.warning("reward %s: %s", self.name, error, exc_info=None if isinstance(error, UserError) else error)
            return _harmless(error)
        return scores


def _harmless(error: BaseException) -> Exception:
    """What a reward raised, in a form that does not end the server: no SystemExit, no KeyboardInterrupt."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
