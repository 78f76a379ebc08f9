"""math-verify as a second opinion, in processes that are killed when an answer takes too long.

A sympy call cannot be interrupted politely, math-verify's own time-outs work in the main thread only, and an answer
such as a tower of powers takes minutes. So calls run in a few processes that wait for them: after one second a process
is killed, and another one started for the next call. Pairs and verdicts cross as JSON.
"""

import atexit
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SECONDS = 1.0
"""Real time per pair."""
START_SECONDS = 60.0
MOST_PROCESSES = 4


@dataclass(frozen=True)
class Verdict:
    """What became of a pair.

    Args:
        equal: the two are equal, says math-verify.
        ended: why the pair ended its process: `timeout` or `crash`; None: it did not.
        failure: why there is no verdict through no fault of the pair's; None: there is one.
    """

    equal: bool = False
    ended: str | None = None
    failure: str | None = None


@cache
def installed() -> bool:
    """Whether math-verify is there."""
    return find_spec("math_verify") is not None


def verify(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """Whether gold and answer of each pair are equal, in order; from any thread.

    The processes stay for the next call and end with this one.
    """
    return _pool().verify(pairs) if pairs else []


class _Broken(Exception):
    """A process that does not work, for no fault of a pair."""


class _Process:
    """A worker, ready."""

    def __init__(self):
        # `-P` keeps this folder, which has a math.py, off the path; the path itself is the parent's.
        worker = Path(__file__).with_name("math_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent, which ends them
        )
        if self._line(START_SECONDS) != "ready":
            self.kill()
            raise _Broken("math-verify does not start")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, gold: str, answer: str) -> Verdict:
        """The verdict; afterwards the process may be dead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise _Broken("the process of math-verify ended while it was idle") from error
        line = self._line(SECONDS)
        if line is None:
            self.kill()
            return Verdict(ended="timeout")
        if line not in ("true", "false"):
            self.kill()
            return Verdict(ended="crash")
        return Verdict(equal=line == "true")

    def _line(self, seconds: float) -> str | None:
        """The next line, `` if the process ended instead, None if neither came in time."""
        assert self._process.stdout is not None
        deadline, read = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not read.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                part = os.read(self._process.stdout.fileno(), 4096)
                if not part:
                    return ""
                read += part
        return read.decode().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what was not read any more
                    continue


class _Pool:
    """A few places for processes, which start when they are needed."""

    def __init__(self):
        self._size = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
        self._places: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._lock, self._processes = threading.Lock(), set[_Process]()
        for _ in range(self._size):
            self._places.put(None)

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        if len(pairs) == 1:
            return [self._verify(*pairs[0])]
        with ThreadPoolExecutor(min(self._size, len(pairs)), thread_name_prefix="math-verify") as threads:
            return list(threads.map(lambda pair: self._verify(*pair), pairs))

    def close(self) -> None:
        with self._lock:
            for process in self._processes:
                process.kill()
            self._processes.clear()

    def _verify(self, gold: str, answer: str) -> Verdict:
        process = self._places.get()
        try:
            failure = None
            for _ in range(2):  # a process that ended while it was idle is replaced once
                try:
                    if process is None or not process.alive:
                        self._forget(process)
                        process = self._start()
                    return process.ask(gold, answer)
                except _Broken as error:
                    failure = str(error)
                except OSError as error:
                    failure = f"math-verify cannot be started: {error.strerror or error}"
            return Verdict(failure=failure)
        finally:
            self._places.put(process)

    def _start(self) -> _Process:
        process = _Process()
        with self._lock:
            self._processes.add(process)
        return process

    def _forget(self, process: _Process | None) -> None:
        if process is not None:
            process.kill()
            with self._lock:
                self._processes.discard(process)


_lock = threading.Lock()
_pools: dict[int, _Pool] = {}


def _pool() -> _Pool:
    """The pool of this process; after a fork another one is made."""
    with _lock:
        if os.getpid() not in _pools:
            _pools[os.getpid()] = _Pool()
            atexit.register(_pools[os.getpid()].close)
        return _pools[os.getpid()]
