"""The program of the jail: jobs from stdin, outcomes to stdout; it runs neither tests nor candidates itself.

Processes of a jail: this one; a zygote, forked before any job is read, so that no test is in its memory; per test one
worker, forked by the zygote, which loads the candidate; per test one judge, forked here, which runs the trusted test.
"""

import json
import os
import select
import signal
import socket
import sys
import time

from unmask.rewards.sandbox.inside import confine, worker
from unmask.rewards.sandbox.inside.judge import READY, judge
from unmask.rewards.sandbox.inside.wire import WireError, read_frame, write_frame

LARGEST_JOB = 1 << 24
_PATIENCE = 20.0
"""Seconds in which a worker must be ready for the code. Past it the machine is at fault, not the candidate."""


class NotReady(Exception):
    """No worker became ready: nothing is known about the candidate."""


def main():
    """Serve until stdin ends."""
    order = read_frame(0)
    control, null = start(order)
    write_frame(1, {"ready": True})
    while True:
        try:
            job = read_frame(0, LARGEST_JOB)
        except WireError:  # stdin has ended
            os._exit(0)
        write_frame(1, {"accepted": job["nonce"]})
        write_frame(1, answer(control, null, job, order))


def start(order):
    """Give up what this process does not need, and make the zygote; its socket, and a descriptor of /dev/null."""
    sys.path += order["packages"]
    worker.preload()
    null = os.open("/dev/null", os.O_RDWR)
    confine.hide()
    if order["readable"] is not None:
        confine.restrict_files(order["readable"])
    control, other = socket.socketpair()
    if os.fork() == 0:
        control.close()
        try:
            worker.serve(other, null, order["memory"], order["cpu_seconds"])
        finally:
            os._exit(1)
    other.close()
    return control, null


def answer(control, null, job, order):
    """What became of a job: `outcomes`, or `infra_error` where no worker became ready; with the job's nonce."""
    try:
        return {"nonce": job["nonce"], "outcomes": _run(control, null, job, order)}
    except NotReady as error:
        return {"nonce": job["nonce"], "infra_error": str(error)}


def _run(control, null, job, order):
    end = time.monotonic() + order["job_seconds"]
    outcomes = []
    for test in job["tests"]:
        left = end - time.monotonic()
        outcomes.append(
            _run_test(control, null, job, test, min(left, order["seconds"]), order) if left > 0 else "timeout"
        )
    return outcomes


def _run_test(control, null, job, test, seconds, order):
    ours, theirs = socket.socketpair()
    socket.send_fds(control, [b"w"], [theirs.fileno()])
    theirs.close()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        control.close()
        judge(ours.fileno(), write, null, job, test, order["memory"], order["cpu_seconds"])
    os.close(write)
    ours.close()
    try:
        if _read_until(read, time.monotonic() + _PATIENCE, 1) != READY:
            raise NotReady("a worker of the sandbox could not start")
        outcome = _read_until(read, time.monotonic() + seconds)
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        control.send(b"e")
        control.recv(1)  # the worker is gone
    if outcome is None:
        return "timeout"
    return json.loads(outcome) if outcome else "error: the test died"


def _read_until(descriptor, deadline, size=4096):
    """What is written to a pipe before its other end closes, `size` bytes at most; None if the deadline comes first."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(0, 0)  # only its hanging up: then whoever asked is gone
    parts = b""
    while len(parts) < size:
        left = deadline - time.monotonic()
        events = poll.poll(max(left, 0) * 1000) if left > 0 else []
        if not events:
            return None
        if any(number == 0 for number, _ in events):
            os._exit(0)
        part = os.read(descriptor, size - len(parts))
        if not part:
            break
        parts += part
    return parts
