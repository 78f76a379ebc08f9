"""The side of the tests: runs one trusted test in a process that never loads the candidate's code."""

import builtins
import json
import os

from unmask.rewards.sandbox.inside import confine
from unmask.rewards.sandbox.inside.wire import WireError, decode, encode, read_frame, write_frame
from unmask.rewards.sandbox.inside.worker import silence

READY = b"r"

# Tests may expect these; any other exception of the candidate arrives as `CandidateError`.
_RAISED = {error.__name__: error for error in (ValueError, TypeError, ZeroDivisionError, IndexError, KeyError)}


class CandidateError(Exception):
    """The candidate raised something else."""


def judge(worker, report, null, job, test, memory, seconds):
    """Write `READY` to `report` once the worker waits for the code, then the outcome of the test. Never returns.

    Args:
        worker: descriptor of the socket of the worker.
        report: descriptor that the supervisor reads.
        null: descriptor of /dev/null.
        job: `code`, `setup`, `names` (what the candidate may provide) and `entry`.
        test: source text, trusted.
        memory: of this process, in bytes.
        seconds: of processor time of this process.
    """
    try:
        confine.die_with_parent()
        silence(null)
        confine.limit(memory, seconds)
        if read_frame(worker) != "ready":
            os._exit(1)
        os.write(report, READY)
        os.write(report, json.dumps(_outcome(worker, job, test)).encode())
    finally:
        os._exit(0)


def _outcome(worker, job, test):
    write_frame(worker, job["code"])
    try:
        hello = read_frame(worker)
        if "raised" in hello:
            return "load: " + _short(hello["raised"])
        space = {"__name__": "__test__", "__builtins__": builtins}
        exec(compile(job["setup"], "<setup>", "exec"), space)
        provided = set(map(str, hello["names"]))
        for name in job["names"]:
            if name in provided:
                space.setdefault(name, _stub(worker, name))
        if job["entry"] is not None:
            if job["entry"] not in provided:
                return "error: NameError"
            space[job["entry"]] = space["candidate"] = _stub(worker, job["entry"])
        exec(compile(test, "<test>", "exec"), space)
        return "passed"
    except AssertionError:
        return "failed"
    except WireError as error:
        return "error: " + str(error)[:60]
    except BaseException as error:
        reason = str(error) if isinstance(error, CandidateError) else type(error).__name__
        return "error: " + _short(reason)


def _stub(worker, name):
    """What stands for a function of the candidate: the call happens in the worker."""

    def call(*arguments, **keywords):
        write_frame(
            worker,
            {
                "function": name,
                "arguments": [encode(value) for value in arguments],
                "keywords": {key: encode(value) for key, value in keywords.items()},
            },
        )
        reply = read_frame(worker)
        if "raised" in reply:
            raised = _short(reply["raised"])
            raise _RAISED.get(raised, CandidateError)(raised)
        return decode(reply["value"])

    return call


def _short(name):
    return "".join(c for c in str(name)[:60] if c.isprintable())
