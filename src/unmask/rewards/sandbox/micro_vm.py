"""One micro-VM of E2B (e2b.dev), and everything that is said to E2B's package."""

import importlib
import json
import os
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from unmask.errors import UserError
from unmask.rewards.sandbox import program
from unmask.rewards.sandbox.inside.wire import frame
from unmask.rewards.sandbox.jobs import CodeJob, CodeResult, Limits
from unmask.rewards.sandbox.proof import proof

KEY = "E2B_API_KEY"
"""Environment variable with the key. It is read by E2B's package, and never leaves for a VM."""
GRACE = 30.0
"""Seconds beyond those of its jobs in which the answers of a batch must be there."""

_JOBS = "jobs"  # one name: those of a command that never began are overwritten
_USER = "root"  # of the VM; the program gives that up itself
_FOLDER = f"/{_USER}/unmask"  # in its home, where nobody else can read
_REQUEST = 30.0  # seconds for what is answered at once
_LARGEST_OUTPUT = 1 << 24


class Trouble(Exception):
    """The service did not do what it was asked to; the message is the reason.

    Args:
        reason: in one line.
        under_way: a job had been accepted, and was not answered.
        ended: the program in the VM ended.
        busy: nothing is wrong but the hour.
    """

    def __init__(self, reason: str, under_way: bool = False, ended: bool = False, busy: bool = False):
        super().__init__(reason)
        self.under_way, self.ended, self.busy = under_way, ended, busy


class _Denied(Trouble):
    """The key was not accepted."""


class Unfit(Exception):
    """A VM in which programs cannot be run safely; the message is the reason."""


class MicroVM:
    """A running VM with our program in it, proven to hold. Use from one thread at a time.

    Args:
        template: E2B's name of what is in the VM.
        python: the interpreter there.
        packages: folders there that programs may import from.
        limits: what one program may use.
        lifetime: seconds until it ends by itself, whatever becomes of this process.
        until: time (`time.monotonic`) by which it must be there.

    Raises:
        Trouble: E2B gives none.
        Unfit: what it gives is of no use.
        UserError: package or key are missing, or the key is not accepted.
    """

    def __init__(
        self, template: str, python: str, packages: Sequence[str], limits: Limits, lifetime: int, until: float
    ):
        self._e2b = _package()
        self._python, self._limits = python, limits
        self._order = frame(program.order(limits, packages, None))
        self._ends = time.monotonic() + lifetime
        self.landlock = False
        try:
            self._box = self._ask(
                until,
                lambda seconds: self._e2b.Sandbox.create(
                    template=template,
                    timeout=lifetime,
                    allow_internet_access=False,
                    metadata={"made-by": "unmask"},
                    request_timeout=seconds,
                ),
            )
        except _Denied as error:
            raise UserError(f"sandbox E2B: {error}; set {KEY} to a key that is valid") from None
        try:
            self._write("program.py", program.script(), until)
            results: list[CodeResult] = []
            try:
                self.run([proof((), 1)], results.append, until)
            except Trouble as error:
                if error.ended:
                    raise Unfit(str(error)) from error
                raise
            if results[0].passed != 1:
                raise Unfit(f"it does not hold: {results[0].outcomes[0]}")
        except BaseException:
            self.close()
            raise

    def lasts(self, seconds: float) -> bool:
        """Whether it will live that long."""
        return time.monotonic() + seconds < self._ends

    def run(self, jobs: Sequence[CodeJob], done: Callable[[CodeResult], None], until: float) -> None:
        """Run jobs one after the other; `done` gets the result of each as soon as it is there.

        Raises:
            Trouble: not all of them were answered.
        """
        nonces = [secrets.token_hex(16) for _ in jobs]
        messages = (frame(program.message(job, nonce)) for job, nonce in zip(jobs, nonces, strict=True))
        self._write(_JOBS, b"".join([self._order, *messages]), until)
        talk = _Talk(jobs, nonces, done)
        # The file is gone before the program starts: no candidate can read a test in it.
        python = shlex.quote(self._python)
        command = f"python=$(command -v {python}) || {{ echo there is no {python} >&2; exit 127; }}; "
        command += f'exec 0< {_JOBS} && rm {_JOBS} && exec env -i {_SETTINGS} "$python" {_OPTIONS} program.py'
        seconds = min(len(jobs) * self._limits.job_seconds + GRACE, until - time.monotonic())
        complaint = ""

        def heard(text: str) -> None:
            nonlocal complaint
            complaint = (complaint + text)[-4096:]

        try:
            self._ask(
                until,
                lambda _: self._box.commands.run(
                    command,
                    user=_USER,
                    cwd=_FOLDER,
                    on_stdout=talk.hear,
                    on_stderr=heard,
                    timeout=max(seconds, 1.0),
                ),
            )
        except self._e2b.CommandExitException as error:
            last = complaint.strip().rpartition("\n")[2][:300]
            raise Trouble(last or f"exit code {error.exit_code}", talk.under_way, ended=True) from None
        except Trouble as error:
            raise Trouble(str(error), talk.under_way, busy=error.busy) from error
        if not talk.finished:
            raise Trouble("the program ended before its jobs", talk.under_way, ended=True)
        self.landlock = talk.landlock

    def close(self) -> None:
        """End it. If E2B does not listen, it ends when its time is over."""
        with suppress(Exception):
            self._box.kill(request_timeout=_REQUEST)

    def _write(self, name: str, content: str | bytes, until: float) -> None:
        path = f"{_FOLDER}/{name}"
        self._ask(until, lambda seconds: self._box.files.write(path, content, user=_USER, request_timeout=seconds))

    def _ask(self, until: float, request: Callable[[float], Any]) -> Any:
        """What E2B's package gives; it has classes for some failures, and raises bare exceptions too."""
        seconds = min(_REQUEST, until - time.monotonic())
        if seconds <= 0:
            raise Trouble("no time is left")
        try:
            return request(seconds)
        except (self._e2b.RateLimitException, self._e2b.ServiceBusyException) as error:
            raise Trouble(_said(error), busy=True) from None
        except self._e2b.AuthenticationException as error:
            raise _Denied(_said(error)) from None
        except (Trouble, self._e2b.CommandExitException):
            raise
        except Exception as error:
            raise Trouble(_said(error)) from None


_SETTINGS = " ".join(f"{name}={value}" for name, value in program.ENVIRONMENT.items())
_OPTIONS = " ".join(program.OPTIONS)


class _Talk:
    """What the program says, line by line, and which job it is at."""

    def __init__(self, jobs: Sequence[CodeJob], nonces: Sequence[str], done: Callable[[CodeResult], None]):
        self._jobs, self._nonces, self._done = jobs, nonces, done
        self._text, self._heard, self._at = "", 0, 0
        self._ready = self.under_way = self.landlock = False

    @property
    def finished(self) -> bool:
        """Whether all jobs are answered."""
        return self._at == len(self._jobs)

    def hear(self, text: str) -> None:
        """Takes some of the output; raises `Trouble` where it is not as it must be."""
        self._heard += len(text)
        if self._heard > _LARGEST_OUTPUT:
            raise Trouble("the program said too much")
        *lines, self._text = (self._text + text).split("\n")
        for line in lines:
            if not self._ready and not line.startswith('{"ready": '):
                continue  # a login shell may say something first
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise Trouble("the program said what it never says") from error

    def _take(self, said: dict[str, Any]) -> None:
        if not self._ready:
            self._ready, self.landlock = True, said["landlock"]
            return
        if self.finished:
            raise ValueError("nothing was asked")
        nonce, job = self._nonces[self._at], self._jobs[self._at]
        if not self.under_way:
            if said["accepted"] != nonce:
                raise ValueError("another job")
            self.under_way = True
            return
        if said["nonce"] != nonce:
            raise ValueError("another job")
        if "infra_error" in said:
            self.under_way = False  # no program of a candidate had been loaded
            raise Trouble(str(said["infra_error"]))
        outcomes = tuple(map(str, said["outcomes"]))
        if len(outcomes) != len(job.tests):
            raise ValueError("another number of tests")
        self.under_way = False
        self._at += 1
        self._done(CodeResult(outcomes))


def _package() -> ModuleType:
    try:
        package = importlib.import_module("e2b")
    except ModuleNotFoundError as error:
        raise UserError(f"sandbox E2B needs the package {error.name!r}: pip install 'unmask[e2b]'") from error
    if not os.environ.get(KEY):
        raise UserError(f"sandbox E2B needs a key: set the environment variable {KEY} (e2b.dev, API Keys)")
    return package


def _said(error: Exception) -> str:
    """An exception in one line, without the key."""
    text = " ".join(f"{type(error).__name__} {error}".split())
    return text.replace(os.environ.get(KEY) or "\0", "***")[:300]
