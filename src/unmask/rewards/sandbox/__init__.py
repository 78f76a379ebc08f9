"""Running code that a model wrote: `CodeExecutor`, `LocalSandbox`, which needs nothing but Linux, and `E2BSandbox`.

**Threat model.** The candidate's code is hostile: trained by reinforcement, it does whatever pays. The tests, their
setup, the machine and its kernel are trusted. Three things are protected.

*The verdict.* A candidate passes only by returning right values. Tests run in a process (the judge) that never loads
the candidate; it calls stubs, and the calls happen in another process (the worker), which never sees a test. Values
cross as JSON rebuilt from exact builtin types, so objects that equal everything, exits, patched modules, forged
output and searches of memory gain nothing. Names of builtins are never the candidate's. The worker is forked from a
zygote that was made before the test was read.

*The machine.* A worker computes in one thread and nothing else: system calls are an allow-list (seccomp), without
processes, threads, programs, sockets, shared memory, signals, or any opening for writing. Around that stands a
backend: bubblewrap (namespaces, all mounts read-only, of the file system only what Python needs) or, where that
cannot start, Landlock (reading below a few paths, nothing else). Root is given up first. A worker has limits of
memory, processor and wall time; an answer has a largest size and depth. Nothing of a candidate outlives its test, so
jails are kept and serve many jobs. Before a backend is used it is started and must refuse a list of escapes; if none
does, that is a `UserError`. Never is code run without a sandbox. In a micro-VM of E2B the VM is the jail, and workers
keep their system calls, limits and user.

*The statistics.* A candidate cannot choose an infra error. A worker reports that it is ready before it gets the code;
what goes wrong before that is the machine's fault, what goes wrong after it the candidate's.

**Not covered.** Bugs of the kernel and of Python in the judge's JSON reader; side channels such as timing; the load
on the machine within the limits; tests that show the expected values to the model in its prompt, which it can
hard-code; values that the candidate read from files below /usr, all of which it may read. A limit of what works:
candidates cannot write files, start threads or processes, or hand objects of classes of their own to a test.
"""

from unmask.rewards.sandbox.e2b import E2BSandbox
from unmask.rewards.sandbox.jobs import CodeExecutor, CodeJob, CodeResult, Limits
from unmask.rewards.sandbox.local import LocalSandbox

__all__ = ["CodeExecutor", "CodeJob", "CodeResult", "E2BSandbox", "Limits", "LocalSandbox"]
