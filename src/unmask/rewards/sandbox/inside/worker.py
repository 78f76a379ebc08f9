"""The side of the candidate: a zygote that holds no secret, and one worker per test, which loads the candidate's code.

A worker is a single process with a single thread that can start no other, so ending it ends everything of its test.
Nothing in it is trusted once it has the code; what it says crosses `wire` and is only ever a value.
"""

import builtins
import gc
import os
import random
import signal
import socket

from unmask.rewards.sandbox.inside import confine
from unmask.rewards.sandbox.inside.wire import decode, encode, read_frame, write_frame

PRELOADED = (
    "abc array bisect calendar cmath collections collections.abc copy dataclasses datetime decimal enum fractions "
    "functools heapq itertools json math operator random re statistics string textwrap time typing"
)
"""Modules that are in memory before a worker starts, so that importing them costs nothing."""

_LARGEST_JOB = 1 << 24


def preload():
    for name in PRELOADED.split():
        __import__(name)


def silence(null):
    """Put the descriptor of /dev/null in the place of stdin, stdout and stderr."""
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def serve(control, null, memory, seconds):
    """The zygote: for each socket that arrives a worker, which ends when the supervisor says so. Never returns."""
    confine.die_with_parent()
    silence(null)
    program = confine.allowed_calls()
    gc.freeze()  # a collection in a worker does not touch, hence not copy, what it shares with this process
    while True:
        _, descriptors, *_ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            os._exit(0)
        worker = os.fork()
        if worker == 0:
            try:
                _work(descriptors[0], program, memory, seconds)
            finally:
                os._exit(0)
        os.close(descriptors[0])
        told = control.recv(1)
        os.kill(worker, signal.SIGKILL)  # not yet waited for, so this number can be nobody else's
        os.waitpid(worker, 0)
        if not told:  # the supervisor is gone
            os._exit(0)
        control.send(b"e")


def _work(descriptor, program, memory, seconds):
    os.dup2(descriptor, 3)
    os.closerange(4, 1024)
    confine.die_with_parent()
    confine.limit(memory, seconds)
    confine.restrict_calls(program)
    write_frame(3, "ready")  # from here on failures are the candidate's
    code = read_frame(3, _LARGEST_JOB)
    random.seed(0)  # one verdict for one program, whatever its luck; hashes are fixed by the environment
    space = {"__name__": "__candidate__", "__builtins__": builtins}
    try:
        exec(compile(code, "<candidate>", "exec"), space)
        reply = {"names": [name for name, value in space.items() if callable(value)]}
    except BaseException as error:
        reply = {"raised": type(error).__name__}
    write_frame(3, reply)
    while True:
        call = read_frame(3, _LARGEST_JOB)
        try:
            arguments = [decode(value) for value in call["arguments"]]
            keywords = {name: decode(value) for name, value in call["keywords"].items()}
            reply = {"value": encode(space[call["function"]](*arguments, **keywords))}
        except BaseException as error:
            reply = {"raised": type(error).__name__}
        write_frame(3, reply)
