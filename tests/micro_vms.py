"""E2B's package as far as it is used, with the names and signatures of e2b 2.63; VMs are folders and processes here.

What is told to run does run, in a process of this machine, so verdicts are real. What may go wrong with a service is
scripted: `Service.create`, `Service.command` are called before a VM is made or a command is run, and may raise.
"""

import codecs
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path


class SandboxException(Exception):
    pass


class TimeoutException(SandboxException):
    pass


class SandboxNotRunningException(TimeoutException):
    pass


class RateLimitException(SandboxException):
    pass


class AuthenticationException(Exception):
    pass


class ServiceBusyException(Exception):
    pass


class CommandExitException(SandboxException):
    def __init__(self, exit_code: int):
        super().__init__(f"Command exited with code {exit_code}")
        self.exit_code = exit_code


class Service:
    """The state of the service.

    Attributes:
        create: called with the number of the VM that is asked for.
        command: called with the VM before a command; may return a function that changes what the command says.
        vms: all that were made.
        noise: what a login shell says first.
    """

    def __init__(self):
        self.create: Callable[[int], None] = lambda number: None
        self.command: Callable[[VM], Callable[[str], str] | None] = lambda vm: None
        self.vms: list[VM] = []
        self.asked: list[dict] = []
        self.noise = ""
        self.lock = threading.Lock()

    @property
    def running(self) -> list["VM"]:
        return [vm for vm in self.vms if vm.running]

    def package(self) -> types.ModuleType:
        """What `import e2b` gives."""
        service = self

        class Sandbox:
            @classmethod
            def create(
                cls,
                template: str | None = None,
                timeout: int | None = None,
                metadata: dict[str, str] | None = None,
                envs: dict[str, str] | None = None,
                secure: bool | None = None,
                allow_internet_access: bool | None = None,
                *,
                request_timeout: float | None = None,
            ) -> "VM":
                with service.lock:
                    number = len(service.asked)
                    service.asked.append({"template": template, "timeout": timeout, "online": allow_internet_access})
                service.create(number)
                vm = VM(service, timeout or 300)
                with service.lock:
                    service.vms.append(vm)
                return vm

        package = types.ModuleType("e2b")
        for one in (
            *(Sandbox, SandboxException, TimeoutException, SandboxNotRunningException, RateLimitException),
            *(AuthenticationException, ServiceBusyException, CommandExitException),
        ):
            setattr(package, one.__name__, one)
        return package


class VM:
    """A VM: a folder instead of a disk, and commands one at a time."""

    def __init__(self, service: Service, lifetime: float):
        self._service, self._ends = service, time.monotonic() + lifetime
        self.root = Path(tempfile.mkdtemp())
        self.root.chmod(0o755)  # as on a disk: what programs cannot read is not hidden by the folder of the stand-in
        self.running, self.commands_run = True, 0
        self.files = self.commands = self
        self.process: subprocess.Popen[bytes] | None = None

    def _up(self) -> None:
        if not self.running or time.monotonic() > self._ends:
            raise SandboxNotRunningException("The sandbox was not found")

    def write(
        self, path: str, data: str | bytes, user: str | None = None, request_timeout: float | None = None
    ) -> None:
        self._up()
        assert user == "root" and request_timeout
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
        file.chmod(0o644)
        for folder in file.parents[: len(Path(path).parents) - 1]:
            folder.chmod(0o755)

    def run(
        self,
        cmd: str,
        background: bool | None = None,
        envs: dict[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        on_stdout: Callable[[str], None] | None = None,
        on_stderr: Callable[[str], None] | None = None,
        stdin: bool | None = None,
        timeout: float | None = 60,
    ) -> None:
        self._up()
        assert user == "root" and cwd and timeout and on_stdout and on_stderr
        self.commands_run += 1
        changed = self._service.command(self)
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", self._service.noise + cmd],
            cwd=self.root / cwd.lstrip("/"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            self._end_process()

        timer = threading.Timer(timeout, end)
        timer.start()
        try:
            assert self.process.stdout and self.process.stderr
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            while part := os.read(self.process.stdout.fileno(), 61):  # a service cuts where it likes
                text = decoder.decode(part)
                on_stdout(changed(text) if changed else text)
            on_stderr(self.process.stderr.read().decode(errors="replace"))
            code = self.process.wait()
        finally:
            timer.cancel()
            self._end_process()
        if late.is_set():
            raise TimeoutException("deadline_exceeded: 'timeout'")
        if not self.running:
            raise SandboxNotRunningException("The sandbox was killed")
        if code:
            raise CommandExitException(code)

    def kill(self, *, request_timeout: float | None = None) -> bool:
        assert request_timeout
        was, self.running = self.running, False
        self._end_process()
        shutil.rmtree(self.root, ignore_errors=True)
        return was

    def _end_process(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None and not threading.current_thread().name.startswith("Thread-"):
                    pipe.close()
