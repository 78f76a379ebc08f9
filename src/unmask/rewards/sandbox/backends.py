"""Ways to confine the program of a jail, and which interpreter it runs on."""

import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from unmask.rewards.sandbox import program
from unmask.rewards.sandbox.inside import confine


class Backend(ABC):
    """How the program of a jail is started."""

    name: ClassVar[str]
    remedy: ClassVar[str]

    @abstractmethod
    def missing(self) -> str | None:
        """What this machine lacks for certain; None where only a trial can tell."""

    @abstractmethod
    def command(self, python: str, packages: Sequence[str]) -> list[str]:
        """The command that runs the program on an interpreter."""

    @abstractmethod
    def readable(self, python: str, packages: Sequence[str]) -> list[str] | None:
        """Paths that the program itself must confine its reading to; None where the command sees to it."""


class Bubblewrap(Backend):
    """Namespaces of its own for users, processes, files, network, IPC and host name; everything mounted read-only."""

    name = "bubblewrap"
    remedy = (
        "install bubblewrap (apt-get install bubblewrap, dnf install bubblewrap) and allow unprivileged user namespaces"
        " (in a container: --security-opt seccomp=unconfined; on Ubuntu 24.04: an AppArmor profile for bwrap)"
    )

    def missing(self) -> str | None:
        return None if shutil.which("bwrap") else "bwrap is not installed"

    def command(self, python: str, packages: Sequence[str]) -> list[str]:
        words = ["bwrap", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        words += ["--unshare-cgroup-try", "--new-session", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL"]
        words += ["--hostname", "sandbox", "--chdir", "/", "--ro-bind", "/usr", "/usr"]
        for path in ("/lib", "/lib64", "/bin"):
            if os.path.islink(path):
                words += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                words += ["--ro-bind", path, path]
        for path in ("/etc/ld.so.cache", *_homes(python), *packages):
            words += ["--ro-bind-try", path, path]
        for path in ("/dev/null", "/dev/urandom"):
            words += ["--dev-bind", path, path]
        return [*words, "--remount-ro", "/", "--", *program.words(python)]

    def readable(self, python: str, packages: Sequence[str]) -> list[str] | None:
        del python, packages
        return None


class Landlock(Backend):
    """No helper and no namespaces: the program gives up all files but those it reads, by the kernel's Landlock."""

    name = "landlock"
    remedy = "use a Linux kernel from 5.13 on with Landlock among its security modules (lsm=landlock,...)"

    def missing(self) -> str | None:
        try:
            confine.landlock_version()
        except OSError as error:
            return str(error)
        return None

    def command(self, python: str, packages: Sequence[str]) -> list[str]:
        del packages
        return program.words(python)

    def readable(self, python: str, packages: Sequence[str]) -> list[str] | None:
        system = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/urandom", *_homes(python))
        return [path for path in (*system, *packages) if os.path.exists(path)]


BACKENDS: tuple[Backend, ...] = (Bubblewrap(), Landlock())
"""In the order of preference."""


@dataclass(frozen=True)
class Account:
    """The user that the program of a jail runs as. Root gives its rights up; anybody else has few to give."""

    uid: int | None
    groups: tuple[int, ...] | None

    def options(self) -> dict[str, object]:
        """Arguments for `subprocess.Popen`."""
        return {} if self.uid is None else {"user": self.uid, "group": self.uid, "extra_groups": self.groups}


def account() -> Account:
    """Root: the user `nobody` (65534), without groups. Else: no change."""
    return Account(65534, ()) if os.geteuid() == 0 else Account(None, None)


def interpreters() -> list[str]:
    """Interpreters to try, the running one first: without its virtual environment, which candidates need not see."""
    running = getattr(sys, "_base_executable", sys.executable)
    found = (os.path.realpath(running), "/usr/bin/python3", "/usr/local/bin/python3")
    return [path for path in dict.fromkeys(found) if os.path.exists(path)]


def _homes(python: str) -> list[str]:
    """The installation of an interpreter, where that is not below /usr; `/x/bin/python` is taken to live in `/x`."""
    home = Path(python).resolve().parent.parent
    return [] if home.is_relative_to("/usr") or home == Path("/") else [str(home)]
