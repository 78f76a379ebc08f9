"""The program of a micro-VM: one file of jobs from stdin, answers as lines of text to stdout, the only way they cross.

It starts as root of the VM, which is given up before anything of a job is read. Around it stands no other jail, so a
worker is held by its user, its system calls and its limits, and by Landlock where the VM's kernel has that.
"""

import json
import os
import sys

from unmask.rewards.sandbox.inside import confine, supervisor
from unmask.rewards.sandbox.inside.wire import WireError, read_frame, write

_NOBODY = 65534


def main():
    """Serve until stdin ends."""
    os.chdir("/")
    order = read_frame(0)
    _be_nobody()
    order["readable"] = _readable(order["packages"])
    control, null = supervisor.start(order)
    _say({"ready": True, "landlock": order["readable"] is not None})
    while True:
        try:
            job = read_frame(0, supervisor.LARGEST_JOB)
        except WireError:  # stdin has ended
            os._exit(0)
        _say({"accepted": job["nonce"]})
        _say(supervisor.answer(control, null, job, order))


def _be_nobody():
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out, it is the programs that end, not what keeps the VM in touch
    except OSError:
        pass
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _readable(packages):
    """Paths that reading is confined to; None where this kernel cannot."""
    try:
        confine.landlock_version()
    except OSError:
        return None
    home = os.path.dirname(os.path.dirname(os.path.realpath(sys.executable)))
    homes = [] if home == "/" or (home + "/").startswith("/usr/") else [home]
    system = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/urandom"]
    return [path for path in [*system, *homes, *packages] if os.path.exists(path)]


def _say(message):
    write(1, json.dumps(message).encode() + b"\n")
