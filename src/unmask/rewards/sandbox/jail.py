"""One running jail: a child process that takes a job at a time."""

import json
import os
import secrets
import select
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from unmask.rewards.sandbox import program
from unmask.rewards.sandbox.backends import Backend, account
from unmask.rewards.sandbox.inside.wire import write_frame
from unmask.rewards.sandbox.jobs import CodeJob, CodeResult, Limits

_START = 20.0
_GRACE = 30.0
"""Seconds beyond a job's own in which its answer must come: the jail ends jobs itself, this is for a stuck machine."""
_LARGEST_ANSWER = 1 << 22


class JailError(Exception):
    """A jail does not start or has ended, and nothing is known about the candidate."""


class Jail:
    """A supervisor process behind a backend, ready for jobs. Use from one thread, the one that made it.

    Nothing a candidate does outlives its test: it cannot write to any file, has no other process, and its own is ended.
    So a jail serves many jobs.

    Raises:
        JailError: it does not start; the message is the reason.
    """

    def __init__(self, backend: Backend, python: str, packages: Sequence[str], limits: Limits):
        self._limits = limits
        options: dict[str, Any] = account().options()
        try:
            self._process = subprocess.Popen(
                backend.command(python, packages),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=program.ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                **options,
            )
        except OSError as error:
            raise JailError(str(error)) from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out, self._err = self._process.stdin, self._process.stdout, self._process.stderr
        try:
            self._send(program.order(limits, packages, backend.readable(python, packages)))
            self._receive(_START)
        except JailError as error:
            self.close()
            raise JailError(self._complaint or str(error)) from error

    def run(self, job: CodeJob) -> CodeResult:
        """The result of one job. Once the jail has accepted a job, whatever goes wrong is the candidate's doing.

        Raises:
            JailError: it did not accept the job, and is closed.
        """
        nonce = secrets.token_hex(16)
        try:
            self._send(program.message(job, nonce))
            if self._receive(_START) != {"accepted": nonce}:
                raise JailError("the jail answered out of turn")
        except JailError:
            self.close()  # what it still says would be taken for the answer to another job
            raise
        try:
            answer = self._receive(self._limits.job_seconds + _GRACE)
        except JailError:
            self.close()
            return CodeResult(("error: ended",) * len(job.tests))
        outcomes = answer.get("outcomes", ())
        if answer.get("nonce") != nonce or ("infra_error" not in answer and len(outcomes) != len(job.tests)):
            self.close()
            return CodeResult(("error: ended",) * len(job.tests))
        return CodeResult(tuple(outcomes), answer.get("infra_error"))

    @property
    def alive(self) -> bool:
        """Whether it can take a job."""
        return self._process.poll() is None

    def close(self) -> None:
        """End all its processes; waits for the supervisor. A second time does nothing."""
        if self._err.closed:
            return
        self._process.kill()
        self._process.wait()
        self._complaint = self._err.read(4096).decode(errors="replace").strip().rpartition("\n")[2][:300]
        for pipe in (self._in, self._out, self._err):
            pipe.close()

    def _send(self, message: Any) -> None:
        try:
            write_frame(self._in.fileno(), message)
        except (OSError, ValueError) as error:
            raise JailError("the jail has ended") from error

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        size = int.from_bytes(self._read(4, deadline), "big")
        if size > _LARGEST_ANSWER:
            raise JailError("the jail answered too much")
        return json.loads(self._read(size, deadline))

    def _read(self, size: int, deadline: float) -> bytes:
        parts = b""
        while len(parts) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._out], [], [], left)[0]:
                raise JailError("the jail does not answer")
            part = os.read(self._out.fileno(), size - len(parts))
            if not part:
                raise JailError("the jail has ended")
            parts += part
        return parts
