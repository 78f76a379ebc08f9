"""The first program of every jail and micro-VM: it tries what these must refuse."""

import os
from collections.abc import Sequence

from unmask.rewards.sandbox.jobs import CodeJob

FILES = ("/etc/passwd", "/proc/self/environ", os.path.abspath(__file__))
"""Of the file system around a jail."""

_ESCAPES = """
import ctypes, os, socket, threading
def escapes(outside, pid):
    def attempt(what, do):
        try:
            do()
            done.append(what)
        except (OSError, RuntimeError):
            pass
    done = []
    for path in outside:
        attempt("read " + path, lambda: open(path).close())
    for path in ("/tmp/unmask", "/dev/shm/unmask", "/dev/null", *outside):
        attempt("write " + path, lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)))
    attempt("signal", lambda: os.kill(pid, 0))
    attempt("process", os.fork)
    attempt("program", lambda: os.execv("/usr/bin/env", ["env"]))
    attempt("socket", socket.socket)
    attempt("thread", threading.Thread(target=int).start)
    if outside:
        attempt("list", lambda: os.listdir("/root") or os.listdir("/home"))
    return done
"""


def proof(outside: Sequence[str], pid: int) -> CodeJob:
    """A job whose test passes where a program can neither write nor start anything, nor open sockets, nor signal.

    Args:
        outside: files that must be out of reach; none where reading is not refused.
        pid: of a process that it must not signal.
    """
    return CodeJob(_ESCAPES, (f"assert escapes({tuple(outside)!r}, {pid}) == []",))
