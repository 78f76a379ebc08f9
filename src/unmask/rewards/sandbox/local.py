"""The sandbox of this machine: chooses a backend, proves that it holds, and keeps jails for parallel work."""

import atexit
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from unmask.errors import UserError
from unmask.rewards.sandbox.backends import BACKENDS, Backend, interpreters
from unmask.rewards.sandbox.jail import Jail, JailError
from unmask.rewards.sandbox.jobs import CodeExecutor, CodeJob, CodeResult, Limits
from unmask.rewards.sandbox.proof import FILES, proof

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalSandbox(CodeExecutor):
    """Runs code in jails on this machine, several at a time. `unmask.rewards.sandbox` says what a jail holds.

    Args:
        backend: `bubblewrap`, `landlock`, or `auto`: the first of these that this machine can start and that holds.
        workers: jails at work at the same time; null: one per usable core. At least 1.
        limits: what one candidate may use.
        packages: folders that candidates may import from, for example one with numpy; readable by everybody.

    Raises:
        UserError: `workers` is below 1. On `run`: no backend works here, or not the one that was asked for.
    """

    backend: Literal["auto", "bubblewrap", "landlock"] = "auto"
    workers: int | None = None
    limits: Limits = field(default_factory=Limits)
    packages: tuple[str, ...] = ()

    def __post_init__(self):
        if self.workers is not None and self.workers < 1:
            raise UserError(f"sandbox: workers must be at least 1, not {self.workers}")

    def check(self) -> None:
        choose(self.backend)

    def run(self, jobs: Sequence[CodeJob]) -> list[CodeResult]:
        return self._pool().run(jobs) if jobs else []

    def close(self) -> None:
        """End the jails. They end by themselves with this process, and a further `run` makes new ones."""
        with _lock:
            pool = _pools.pop((self, os.getpid()), None)
        if pool is not None:
            pool.close()

    def _pool(self) -> "_Pool":
        """The pool of this process for these settings; after a fork another one is made."""
        with _lock:
            if (self, os.getpid()) not in _pools:
                _pools[self, os.getpid()] = _Pool(self)
                atexit.register(self.close)
            return _pools[self, os.getpid()]


@cache
def choose(backend: str) -> tuple[Backend, str]:
    """The backend for `auto` or a name, and the interpreter in it; both proven by a trial. Logged once.

    Raises:
        UserError: none works here.
    """
    reasons = []
    for candidate in BACKENDS:
        if backend in ("auto", candidate.name):
            python = _trial(candidate)
            if not isinstance(python, Failure):
                log.info("code runs in the %s sandbox, on %s", candidate.name, python)
                return candidate, python
            reasons.append(f"{candidate.name}: {python.reason}; {candidate.remedy}")
    raise UserError("no sandbox can start here, and code is never run without one. " + ". ".join(reasons))


@dataclass(frozen=True)
class Failure:
    """Why a backend cannot be used."""

    reason: str


@cache
def _trial(backend: Backend) -> str | Failure:
    """The first interpreter with which a backend starts and holds."""
    reason = backend.missing()
    if reason:
        return Failure(reason)
    reasons = []
    for python in interpreters():
        try:
            jail = Jail(backend, python, (), Limits())
        except JailError as error:
            reasons.append(f"{python}: {error}")
            continue
        result = jail.run(proof(FILES, os.getpid()))
        jail.close()
        if result.passed == 1:
            return python
        reasons.append(f"{python}: the jail does not hold: {result.infra_error or result.outcomes[0]}")
    return Failure("; ".join(reasons) or "there is no Python interpreter below /usr")


class _Pool:
    """Threads that each keep a jail. A jail lives as long as its thread, as the kernel ends it with that thread."""

    def __init__(self, sandbox: LocalSandbox):
        self._sandbox = sandbox
        self._backend, self._python = choose(sandbox.backend)
        workers = sandbox.workers or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        self._own = threading.local()
        self._jails: list[Jail] = []  # of all threads

    def run(self, jobs: Sequence[CodeJob]) -> list[CodeResult]:
        return list(self._threads.map(self._run, jobs))

    def close(self) -> None:
        self._threads.shutdown()
        for jail in self._jails:
            if jail.alive:
                jail.close()

    def _run(self, job: CodeJob) -> CodeResult:
        result = CodeResult()
        for _ in range(2):  # what fails on our side is tried once more, and a jail that has ended is replaced
            try:
                result = self._jail().run(job)
            except JailError as error:
                self._own.jail = None
                result = CodeResult(infra_error=f"the sandbox does not work: {error}")
            if result.infra_error is None:
                break
        return result

    def _jail(self) -> Jail:
        jail = getattr(self._own, "jail", None)
        if jail is None or not jail.alive:
            sandbox = self._sandbox
            jail = self._own.jail = Jail(self._backend, self._python, sandbox.packages, sandbox.limits)
            self._jails = [other for other in self._jails if other.alive] + [jail]
        return jail


_lock = threading.Lock()
_pools: dict[tuple[LocalSandbox, int], _Pool] = {}
