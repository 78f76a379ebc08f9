"""The sandbox of a service: programs run in micro-VMs of E2B (e2b.dev), several at a time."""

import atexit
import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, isfinite

from unmask.errors import UserError
from unmask.rewards.sandbox.jobs import CodeExecutor, CodeJob, CodeResult, Limits
from unmask.rewards.sandbox.micro_vm import GRACE, MicroVM, Trouble, Unfit

_LONGEST_PAUSE = 15.0
_CHANCE = random.SystemRandom()  # of pauses; no draw of the training is touched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class E2BSandbox(CodeExecutor):
    """Runs code in micro-VMs of E2B, with the extra `unmask[e2b]` and a key in the environment (`E2B_API_KEY`).

    Verdicts are those of `LocalSandbox`: tests and candidates are in processes of their own there too. VMs have no
    internet, are kept for many jobs, and end by themselves. A service that fails is asked again; what it still has not
    judged then is an infra error. A job during which its VM was lost is run in a second one; if that is lost too while
    it has the job, the program is taken for the reason, and its tests have failed.

    Args:
        template: E2B's name of what the VMs hold; it must have Python 3.10 or newer.
        workers: VMs at work at the same time, per process. Your plan with E2B has a limit. At least 1.
        batch: jobs that a VM gets at once, at most; it runs them one after the other. At least 1.
        limits: what one candidate may use; more than one VM has makes no sense.
        python: the interpreter in the VM.
        packages: folders in the VM that candidates may import from; readable by everybody there.
        lifetime: seconds after which a VM ends, whatever becomes of this process. It is not prolonged: a VM with too
            little left is replaced.
        tries: failures in a row, without progress, after which a batch is given up; a busy service is no failure.
        deadline: seconds without progress, beyond what programs may take themselves, after which a batch is given up.

    Raises:
        UserError: settings that make no sense. On `run` and `check`: package or key are missing, or E2B does not take
            the key. On `check`: there is no VM in which programs run safely.
    """

    template: str = "base"
    workers: int = 4
    batch: int = 16
    limits: Limits = field(default_factory=Limits)
    python: str = "python3"
    packages: tuple[str, ...] = ()
    lifetime: int = 600
    tries: int = 3
    deadline: float = 120.0

    def __post_init__(self):
        for name, least in (("workers", 1), ("batch", 1), ("tries", 1)):
            if getattr(self, name) < least:
                raise UserError(f"sandbox: {name} must be at least {least}, not {getattr(self, name)}")
        if not (isfinite(self.deadline) and self.deadline > 0):
            raise UserError(f"sandbox: deadline must be above 0, not {self.deadline}")
        if self.lifetime <= self.needed(self.batch):
            raise UserError(
                f"sandbox: lifetime must be above batch x limits.job_seconds + {GRACE:g} = {self.needed(self.batch):g},"
                f" not {self.lifetime}"
            )
        if not self.template or not self.python:
            raise UserError("sandbox: template and python must not be empty")

    def needed(self, jobs: int) -> float:
        """Seconds that a VM has for so many jobs."""
        return jobs * self.limits.job_seconds + GRACE

    def check(self) -> None:
        self._fleet().check()

    def run(self, jobs: Sequence[CodeJob]) -> list[CodeResult]:
        return self._fleet().run(jobs) if jobs else []

    def close(self) -> None:
        """End the VMs. They end with this process, and a further `run` makes new ones."""
        with _lock:
            fleet = _fleets.pop((self, os.getpid()), None)
        if fleet is not None:
            fleet.close()

    def _fleet(self) -> "_Fleet":
        """The VMs of this process for these settings; after a fork others are made."""
        with _lock:
            if (self, os.getpid()) not in _fleets:
                _fleets[self, os.getpid()] = _Fleet(self)
                atexit.register(self.close)
            return _fleets[self, os.getpid()]


class _Fleet:
    """Threads at work, and the VMs that they share: the one that was used last is taken first."""

    def __init__(self, sandbox: E2BSandbox):
        self._sandbox = sandbox
        self._threads = ThreadPoolExecutor(sandbox.workers, thread_name_prefix="e2b")
        self._lock = threading.Lock()
        self._idle: list[MicroVM] = []
        self._checked = False

    def check(self) -> None:
        template, landlock, patience = self._sandbox.template, None, _Patience(self._sandbox, 1)
        while landlock is None:
            try:
                with self._vm(1, patience.until) as vm:
                    landlock = vm.landlock
            except Unfit as error:
                raise UserError(
                    f"sandbox E2B: programs cannot be run safely in VMs of the template {template!r}: {error}; "
                    "name another `template` or `python`"
                ) from error
            except Trouble as error:
                if not patience.again(error):
                    raise UserError(f"sandbox E2B: there is no VM of the template {template!r}: {error}") from error
        if self._checked:
            return
        self._checked = True
        reading = "read what /usr holds" if landlock else "read the VM's files (its kernel has no Landlock)"
        log.info("code runs in micro-VMs of E2B (%s), where programs can %s", template, reading)

    def run(self, jobs: Sequence[CodeJob]) -> list[CodeResult]:
        size = min(self._sandbox.batch, ceil(len(jobs) / self._sandbox.workers))
        batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        return [result for results in self._threads.map(self._run, batches) for result in results]

    def close(self) -> None:
        self._threads.shutdown()
        for vm in self._idle:
            vm.close()

    def _run(self, jobs: Sequence[CodeJob]) -> list[CodeResult]:
        """The results of a batch, whatever happens to VMs meanwhile."""
        results, suspect, patience = list[CodeResult](), -1, _Patience(self._sandbox, len(jobs))
        while (at := len(results)) < len(jobs):
            now = jobs[at : at + 1] if suspect == at else jobs[at:]
            try:
                with self._vm(len(now), patience.until) as vm:
                    vm.run(now, results.append, patience.until)
                continue
            except (Trouble, Unfit) as error:
                trouble = error
            was = suspect
            if isinstance(trouble, Trouble) and trouble.under_way:
                if trouble.ended or suspect == len(results):
                    results.append(CodeResult(("error: ended",) * len(jobs[len(results)].tests)))
                else:
                    suspect = len(results)
            if len(results) > at or suspect != was:
                patience = _Patience(self._sandbox, len(jobs) - len(results))
            elif not patience.again(trouble):
                log.warning("E2B did not judge %d programs (%s); they are left out", len(jobs) - at, trouble)
                results += [CodeResult(infra_error=f"E2B: {trouble}")] * (len(jobs) - at)
        return results

    @contextmanager
    def _vm(self, jobs: int, until: float) -> Iterator[MicroVM]:
        """A VM that lasts for so many jobs. It is kept for the next ones, unless something went wrong with it."""
        sandbox = self._sandbox
        vm = self._kept(sandbox.needed(jobs))
        if vm is None:
            vm = MicroVM(sandbox.template, sandbox.python, sandbox.packages, sandbox.limits, sandbox.lifetime, until)
        well = False
        try:
            yield vm
            well = True
        except Trouble as error:
            well = error.busy and not error.under_way  # a command that the service was too busy to begin
            raise
        finally:
            if well:
                with self._lock:
                    self._idle.append(vm)
            else:
                vm.close()

    def _kept(self, seconds: float) -> MicroVM | None:
        while True:
            with self._lock:
                vm = self._idle.pop() if self._idle else None
            if vm is None or vm.lasts(seconds):
                return vm
            vm.close()


class _Patience:
    """How long to go on with a batch that makes no progress.

    Its programs have their time beside the deadline, so slow ones cannot make infra errors of themselves or others.
    """

    def __init__(self, sandbox: E2BSandbox, jobs: int):
        self.until = time.monotonic() + sandbox.deadline + jobs * sandbox.limits.job_seconds
        self._left, self._pauses = sandbox.tries, 0

    def again(self, error: Exception) -> bool:
        """Whether to try again after this failure; if so, after a pause."""
        busy = isinstance(error, Trouble) and error.busy
        self._left -= not busy  # a service that is busy is waited for until the deadline
        seconds = min(_CHANCE.uniform(0.5, 1) * 2**self._pauses, _LONGEST_PAUSE)
        self._pauses += 1
        if self._left < 1 or time.monotonic() + seconds >= self.until:
            return False
        time.sleep(seconds)
        return True


_lock = threading.Lock()
_fleets: dict[tuple[E2BSandbox, int], _Fleet] = {}
