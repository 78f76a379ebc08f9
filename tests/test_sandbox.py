"""The sandbox: right programs pass, hostile ones gain nothing, and nothing is left of either, under both backends."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import UserError
from unmask.rewards.sandbox import CodeJob, CodeResult, Limits, LocalSandbox, backends, local
from unmask.rewards.sandbox.inside.wire import WireError, decode, encode
from unmask.rewards.sandbox.jail import Jail, JailError
from unmask.rewards.sandbox.jobs import provided_names

TESTS = ("assert f(2) == 4", "assert set(f(2) for _ in range(3)) == {4}")
QUICK = Limits(seconds=0.7, job_seconds=6.0)
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls of x86_64")


def why_not(backend: str) -> str | None:
    try:
        LocalSandbox(backend).check()
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def sandbox(request):
    if reason := why_not(request.param):
        pytest.skip(reason)
    made = LocalSandbox(request.param, workers=1, limits=QUICK)
    yield made
    made.close()


@pytest.fixture(scope="module")
def any_sandbox():
    if reason := why_not("auto"):
        pytest.skip(reason)
    made = LocalSandbox(workers=2, limits=QUICK)
    yield made
    made.close()


def run(sandbox, code, *tests, **options) -> CodeResult:
    (result,) = sandbox.run([CodeJob(textwrap.dedent(code), tests or TESTS, **options)])
    return result


def outcomes(sandbox, code, *tests, **options) -> tuple[str, ...]:
    result = run(sandbox, code, *tests, **options)
    assert result.infra_error is None
    return result.outcomes


def processes(root: int | None = None) -> set[tuple[int, str]]:
    """The processes of all jails below this process, or another, with the times of their starts."""
    parents, started = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if b"unmask.rewards.sandbox.inside" in (entry / "cmdline").read_bytes():
                    started[int(entry.name)] = fields[19]
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])

    def below(pid):
        return pid == (root or os.getpid()) or (pid in parents and below(parents[pid]))

    return {(pid, start) for pid, start in started.items() if below(pid)}


def any_left(found: set[tuple[int, str]]) -> bool:
    """Whether one of these still lives, whoever has become its parent."""
    for pid, start in found:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == start and fields[0] != "Z":
            return True
    return False


def until(holds, seconds=5.0) -> bool:
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return held


# -- programs that do what they are asked


def test_right_wrong_and_broken_programs(sandbox):
    assert outcomes(sandbox, "def f(x): return x * 2") == ("passed", "passed")
    assert outcomes(sandbox, "def f(x): return x + 1") == ("failed", "failed")
    assert outcomes(sandbox, "def f(x) return 4") == ("load: SyntaxError",) * 2
    assert outcomes(sandbox, "import absent") == ("load: ModuleNotFoundError",) * 2
    assert outcomes(sandbox, "def g(x): return 4") == ("error: NameError",) * 2
    assert outcomes(sandbox, "def f(): return 4") == ("error: TypeError",) * 2
    assert outcomes(sandbox, "f = 4") == ("error: NameError",) * 2
    assert outcomes(sandbox, "") == ("error: NameError",) * 2
    assert outcomes(sandbox, "\0") == ("load: ValueError",) * 2
    assert outcomes(sandbox, "'\ud800'") == ("load: UnicodeEncodeError",) * 2


def test_tests_are_judged_one_by_one_and_in_order(sandbox):
    code = "def f(x):\n    while x == 3: pass\n    return 1 // x"
    tests = [f"assert f({x}) == 0" for x in (5, 1, 3, 0, 7)]
    assert outcomes(sandbox, code, *tests) == ("passed", "failed", "timeout", "error: ZeroDivisionError", "passed")


def test_calls_take_keywords_keep_state_within_a_test_and_start_afresh_in_the_next(sandbox):
    assert outcomes(sandbox, "def f(x, *, k): return x + k", "assert f(1, k=2) == 3") == ("passed",)
    code = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"
    assert outcomes(sandbox, code, "assert (f(1), f(1)) == (1, 2)", "assert f(1) == 1") == ("passed", "passed")


def test_setup_runs_on_the_side_of_the_tests_and_the_entry_is_the_candidate(sandbox):
    code = "def f(x): return x * x\ndef helper(x): return 0"
    options = {"setup": "import math\ndef helper(x): return math.isqrt(x)", "entry": "f"}
    assert outcomes(sandbox, code, "assert helper(f(3)) == candidate(1) + 2", **options) == ("passed",)


def test_a_builtin_can_be_the_function_under_test(sandbox):
    code = "def sum(a, b): return a + b"
    assert outcomes(sandbox, code, "assert sum(1, 2) == 3", "assert sum(2, 2) == 4") == ("passed", "passed")


def test_the_usual_exceptions_reach_the_test_and_others_do_not_pass_for_them(sandbox):
    test = "try:\n    f(1)\n    raise AssertionError\nexcept ValueError:\n    pass"
    assert outcomes(sandbox, "def f(x): raise ValueError", test) == ("passed",)
    assert outcomes(sandbox, "class ValueError2(ValueError): pass\ndef f(x): raise ValueError2", test) == (
        "error: ValueError2",
    )
    assert outcomes(sandbox, "def f(x): raise AssertionError", *TESTS[:1]) == ("error: AssertionError",)
    assert outcomes(sandbox, "def f(x): return 1", test) == ("failed",)


def test_programs_may_import_recurse_time_themselves_and_read_no_clock_of_ours(sandbox):
    code = """
        import bisect, collections, decimal, heapq, itertools, re, signal, statistics, sys, unicodedata, zoneinfo
        sys.setrecursionlimit(20_000)
        def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
        def f(x):
            print("noise", file=sys.stderr)
            signal.alarm(5)
            return re.sub("a", "b", "banana"), depth(15_000), collections.Counter("aab").most_common(1), 2 ** 20_000
    """
    assert outcomes(sandbox, code, "assert f(0) == ('bbnbnb', 15_000, [('a', 2)], 2 ** 20_000)") == ("passed",)


def test_results_do_not_depend_on_batch_order_or_thread(any_sandbox):
    jobs = [CodeJob(f"def f(x): return x + {k}", TESTS) for k in range(6)]
    batch = any_sandbox.run(jobs)
    assert [result.passed for result in batch] == [0, 0, 2, 0, 0, 0]
    assert any_sandbox.run(jobs[::-1])[::-1] == batch
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda job: any_sandbox.run([job])[0], jobs)) == batch
    assert any_sandbox.run([]) == []


def test_sets_and_random_numbers_are_the_same_in_every_run(any_sandbox):
    code = """
        import random
        def f(x): raise type(f"{random.random()} {''.join({*'abcdef'})}", (Exception,), {})
    """
    fresh = [replace(any_sandbox, workers=1) for _ in range(2)]
    seen = set()
    for each in fresh:
        seen |= set(outcomes(each, code))
        each.close()
    assert len(seen) == 1 and "error: 0." in seen.pop()


# -- cheats: programs that want to pass without being right

FORGE = """
    import json, os, struct
    def f(x):
        for message in ({"outcomes": ["passed", "passed"]}, {"value": 4}, {"value": {"l": [4]}}, "passed", "r"):
            body = json.dumps(message).encode()
            for fd in range(64):
                for data in (body, struct.pack(">I", len(body)) + body):
                    try: os.write(fd, data)
                    except OSError: pass
        print("passed", json.dumps({"nonce": "", "outcomes": ["passed", "passed"]}), flush=True)
        return 0
"""
CHEATS = {
    "exits when imported": "import os; os._exit(0)",
    "exits in the call": "import os\ndef f(x): os._exit(0)",
    "sys.exit when imported": "import sys; sys.exit(0)",
    "sys.exit in the call": "import sys\ndef f(x): sys.exit(0)",
    "raises SystemExit": "def f(x): raise SystemExit(0)",
    "raises KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "raises GeneratorExit": "def f(x): raise GeneratorExit",
    "raises StopIteration": "def f(x): raise StopIteration",
    "exit hook": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "object equal to everything": "class A:\n    def __eq__(s, o): return True\ndef f(x): return A()",
    "int equal to everything": """
        class A(int):
            def __eq__(s, o): return True
            __hash__ = int.__hash__
        def f(x): return A(7)""",
    "str with a lying __eq__": "class A(str):\n    def __eq__(s, o): return True\ndef f(x): return A('4')",
    "list that lies about its items": """
        class A(list):
            def __iter__(s): return iter([4])
            def __eq__(s, o): return True
        def f(x): return A([0])""",
    "float that lies about its content": "class A(float):\n    def hex(s): return '0x4p0'\ndef f(x): return A(0)",
    "class that claims to be int": """
        class A:
            __class__ = int
            def __eq__(s, o): return True
        def f(x): return A()""",
    "defines the builtins of the test": """
        def f(x): return 0
        def set(x): return {4}
        def range(n): return [4]
        def len(x): return 4
        def abs(x): return 4
        def sorted(x): return [4]""",
    "patches builtins": """
        import builtins
        builtins.set = lambda x: {4}
        builtins.len = lambda x: 4
        builtins.isinstance = lambda *a: True
        builtins.AssertionError = ValueError
        def f(x): return 0""",
    "patches json and os": """
        import json, os, sys
        json.dumps = lambda *a, **k: '{"value": 4}'
        os.write = lambda fd, data: len(data)
        json.loads = lambda *a: "passed"
        def f(x): return 0""",
    "patches the sandbox's own modules": """
        import sys
        for name, module in list(sys.modules.items()):
            if "sandbox" in name:
                for key in list(vars(module)):
                    if callable(vars(module)[key]): setattr(module, key, lambda *a, **k: 4 if k else "passed")
        def f(x): return 0""",
    "forged frames on every descriptor": FORGE,
    "closes every descriptor": "import os\nos.closerange(0, 1024)\ndef f(x): return 4",
    "traces every call": "import sys\nsys.settrace(lambda *a: 4)\nsys.setprofile(lambda *a: 4)\ndef f(x): return 0",
    "nothing callable by that name": "class f:\n    pass",
    "kills its elders": """
        import os
        for pid in (os.getppid(), 1, 2, 0, -1):
            try: os.kill(pid, 9)
            except OSError: pass
        def f(x): return 0""",
    "segfault": "import ctypes\nctypes.string_at(0)\ndef f(x): return 4",
    "segfault in the call": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "abort": "import os\ndef f(x): os.abort()",
    "endless recursion": "def f(x): return f(x)",
    "deep C recursion": """
        import sys
        sys.setrecursionlimit(10**9)
        class A:
            def __repr__(s): return repr(s)
        def f(x): repr(A())""",
    "deep source": "(" * 60_000,
    "long source": "x = " + "1 + " * 15_000 + "1",
    "deep result": "def f(x):\n    a = []\n    for _ in range(2000): a = [a]\n    return a",
    "endless result": "import itertools\ndef f(x): return itertools.count()",
    "result that contains itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "large result": "def f(x): return 'x' * 50_000_000",
    "memory hog": "def f(x):\n    a = []\n    while True: a.append(bytearray(50 << 20))",
    "memory hog when imported": "a = bytearray(1 << 40)",
    "large integer": "def f(x): return 1 << 40_000_000",
    "unhashable key": "def f(x): return {4: 4}.keys() | {()}",
}


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes_a_test_or_becomes_an_infra_error(sandbox, name):
    assert "passed" not in outcomes(sandbox, CHEATS[name])


LOOPS = {
    "when imported": "while True: pass",
    "in the call": "def f(x):\n    while True: pass",
    "sleeps and ignores signals": """
        import signal, time
        for s in range(1, 32):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        def f(x): time.sleep(1e6)""",
    "tower of powers": "def f(x): return 9 ** 9 ** 9",
    "catastrophic pattern": "import re\ndef f(x): return re.match('(a+)+$', 'a' * 40 + 'b')",
    "catches everything": """
        def f(x):
            while True:
                try:
                    while True: pass
                except BaseException: pass""",
    "compiles for ever": "def f(x): return eval('2 ** 3 ** 4 ** 5' if x == 3 else '9 ** 9 ** 9')",
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_program_that_does_not_end_loses_this_test_only(sandbox, name):
    start = time.monotonic()
    assert outcomes(sandbox, LOOPS[name], TESTS[0]) == ("timeout",)
    assert time.monotonic() - start < QUICK.seconds + 5
    assert outcomes(sandbox, "def f(x): return x * 2") == ("passed", "passed")


def test_values_that_blow_up_in_the_test_end_that_test_only(sandbox):
    tests = ("assert 'x' * f(1) == 0", "assert f(2) ** f(2) ** f(2) ** f(2) == 0", "assert f(3) == 40")
    got = outcomes(sandbox, "def f(x): return (0, 1 << 40, 9, 40)[x]", *tests)
    assert got == ("error: MemoryError", "timeout", "passed")


def test_the_time_of_a_job_is_limited_as_a_whole():
    if reason := why_not("auto"):
        pytest.skip(reason)
    short = LocalSandbox(workers=1, limits=Limits(seconds=0.5, job_seconds=0.8))
    start = time.monotonic()
    assert outcomes(short, "def f(x):\n    while True: pass", *[TESTS[0]] * 20) == ("timeout",) * 20
    assert time.monotonic() - start < 6
    short.close()


def test_a_program_does_not_find_the_expected_value(sandbox):
    code = """
        import ctypes, gc, os, sys
        def texts():
            yield from map(repr, sys.argv + sys.orig_argv)
            for name, module in list(sys.modules.items()):
                yield repr(vars(module))
            for found in gc.get_objects():
                if isinstance(found, (str, bytes, int, list, dict, tuple, type(sys._getframe()))):
                    yield repr(getattr(found, "f_locals", found))[:2000]
            frame = sys._getframe()
            while frame:
                yield repr(frame.f_locals) + repr(frame.f_globals.keys())
                frame = frame.f_back
            for pid in ("self", os.getppid(), 1):
                for name in ("mem", "environ", "cmdline", "maps", "fd/0", "fd/1", "fd/3", "stack"):
                    try: yield repr(open(f"/proc/{pid}/{name}", "rb").read(1 << 20))
                    except (OSError, OverflowError): pass
        def f(x):
            return any("9035768"[::-1] in text for text in texts())
    """
    assert outcomes(sandbox, code, "assert f(2) == 8675309", "assert f(2) is False") == ("failed", "passed")


# -- escapes: programs that want to reach the machine

ATTEMPT = """
    def attempt(what, do):
        try:
            do()
            done.append(what)
        except (OSError, RuntimeError, ValueError):
            pass
    done = []
"""


def escapes(sandbox, body, *arguments, setup="import os, socket, ctypes, threading, signal, resource"):
    """What the lines of `body` succeeded in; each calls `attempt`."""
    code = (
        textwrap.dedent(setup)
        + "\ndef f(args):\n"
        + textwrap.indent(textwrap.dedent(ATTEMPT) + textwrap.dedent(body), "    ")
    )
    code += "\n    if done: raise type(repr(done), (Exception,), {})\n"  # a failure shows what succeeded
    assert outcomes(sandbox, code, f"f({list(arguments)!r})") == ("passed",)


def test_files_outside_can_be_neither_read_nor_changed(sandbox):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        secret.chmod(0o666)
        body = """
        path = args[0]
        for name in (path, "/etc/passwd", "/proc/self/environ", "/proc/1/environ", "/root", "/home", "/var/log"):
            attempt("read " + name, lambda: os.read(os.open(name, os.O_RDONLY), 1))
        for name in (path, "/usr/x", "/tmp/x", "/dev/shm/x", "/x", "x", "/dev/null", path + "2"):
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
                attempt("write " + name, lambda: os.open(name, flags))
        attempt("unnamed", lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR))
        for folder in ("/tmp", "/dev/shm", "/", os.path.dirname(path)):
            attempt("list " + folder, lambda: os.listdir(folder) if folder != "/" else os.listdir("/root"))
            attempt("mkdir " + folder, lambda: os.mkdir(folder + "/new"))
        attempt("unlink", lambda: os.unlink(path))
        attempt("rename", lambda: os.rename(path, path + "3"))
        attempt("link", lambda: os.link(path, path + "4"))
        attempt("symlink", lambda: os.symlink(path, path + "5"))
        attempt("truncate", lambda: os.truncate(path, 0))
        attempt("chmod", lambda: os.chmod(path, 0))
        attempt("utime", lambda: os.utime(path))
        attempt("fifo", lambda: os.mkfifo(path + "6"))
        attempt("memfd", lambda: os.memfd_create("x"))
        """
        before = (secret.stat().st_mtime_ns, secret.stat().st_mode)
        escapes(sandbox, body, str(secret))
        assert secret.read_text() == "secret"
        assert (secret.stat().st_mtime_ns, secret.stat().st_mode) == before
        assert [path.name for path in Path(folder).iterdir()] == ["secret"]


def test_the_network_is_out_of_reach(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local_server:
        local_server.bind("\0unmask-test")
        local_server.listen()
        server.settimeout(0.05)
        local_server.settimeout(0.05)
        body = """
        for address in (("127.0.0.1", args[0]), ("169.254.169.254", 80), ("1.1.1.1", 53)):
            attempt("connect", lambda: socket.create_connection(address, timeout=0.2))
        attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0unmask-test"))
        attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        attempt("raw", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
        attempt("pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        attempt("reuse", lambda: socket.socket(fileno=3).sendmsg([b"x"], [], 0, "\\0unmask-test"))
        attempt("server", lambda: socket.create_server(("127.0.0.1", 0)))
        """
        escapes(sandbox, body, server.getsockname()[1])
        for listening in (server, local_server):
            with pytest.raises(TimeoutError):
                listening.accept()


def test_no_process_or_thread_is_started_and_none_outside_is_touched(sandbox):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        body = """
        import subprocess
        pid = args[0]
        attempt("fork", os.fork)
        attempt("thread", threading.Thread(target=int).start)
        attempt("exec", lambda: os.execv("/usr/bin/env", ["env"]))
        attempt("spawn", lambda: os.posix_spawn("/usr/bin/env", ["env"], {}))
        attempt("subprocess", lambda: subprocess.run(["/usr/bin/env"]))
        attempt("system", lambda: os.system("true") and 1 / 0 if os.system("true") == 0 else os.stat("/none"))
        attempt("popen", lambda: os.popen("true"))
        for target in (pid, os.getppid(), 1, -1, 0, os.getpid()):
            for number in (signal.SIGTERM, signal.SIGSTOP, 0):
                attempt("kill", lambda: os.kill(target, number))
            if target:  # 0 is the program itself, which may lower its limits
                attempt("limit", lambda: resource.prlimit(target, resource.RLIMIT_CPU, (1, 1)))
            attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, target, 5))
            attempt("affinity", lambda: os.sched_setaffinity(target, {0}))
            attempt("pidfd", lambda: os.pidfd_open(target))
        attempt("nice user", lambda: os.setpriority(os.PRIO_USER, os.getuid(), 5))
        attempt("session", os.setsid)
        attempt("uid", lambda: os.setuid(0))
        attempt("groups", lambda: os.setgroups([0]))
        attempt("chroot", lambda: os.chroot("/usr"))
        attempt("more memory", lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)))
        attempt("more time", lambda: resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000)))
        import fcntl
        attempt("owner", lambda: fcntl.fcntl(3, fcntl.F_SETOWN, pid))
        attempt("signal of owner", lambda: fcntl.fcntl(3, 10, 9))
        attempt("asynchronous", lambda: fcntl.fcntl(3, fcntl.F_SETFL, os.O_ASYNC))
        attempt("lock", lambda: fcntl.flock(os.open("/usr/bin/env", os.O_RDONLY), fcntl.LOCK_EX))
        """
        escapes(sandbox, body, bystander.pid)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


CALLS = {
    "open": 2, "rt_sigqueueinfo": 129, "shmget": 29, "socket": 41, "connect": 42, "sendto": 44,
    "sendmsg": 46, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "semget": 64,
    "msgget": 68, "truncate": 76, "creat": 85, "ptrace": 101, "setsid": 112, "personality": 135, "setpriority": 141,
    "prctl": 157, "chroot": 161, "mount": 165, "umount2": 166, "reboot": 169, "init_module": 175, "tkill": 200,
    "sched_setaffinity": 203, "timer_create": 222, "tgkill": 234, "mq_open": 240, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "ioprio_set": 251, "inotify_init": 253, "migrate_pages": 256, "unshare": 272,
    "move_pages": 279, "perf_event_open": 298, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "seccomp": 317, "memfd_create": 319, "bpf": 321, "execveat": 322,
    "userfaultfd": 323, "io_uring_setup": 425, "pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438,
    "process_madvise": 440, "landlock_create_ruleset": 444, "memfd_secret": 447, "a call of the future": 999,
}  # fmt: skip


@on_x86
def test_system_calls_beyond_pure_computing_are_refused(sandbox):
    numbers = sorted(CALLS.values())
    body = """
        libc = ctypes.CDLL(None, use_errno=True)
        for number in args:
            ctypes.set_errno(0)
            result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
            if result != -1 or ctypes.get_errno() not in (1, 38):
                done.append((number, result, ctypes.get_errno()))
    """
    escapes(sandbox, body, *numbers)


@on_x86
@pytest.mark.parametrize("call", ["libc.syscall(0x40000000 + 39)", "run(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')"])
def test_calls_of_another_architecture_end_the_program(sandbox, call):
    code = f"""
        import ctypes, mmap
        libc = ctypes.CDLL(None)
        def run(machine_code):
            libc.mmap.restype = ctypes.c_void_p
            page = libc.mmap(None, 4096, 7, 0x22, -1, 0)
            ctypes.memmove(page, machine_code, len(machine_code))
            return ctypes.CFUNCTYPE(ctypes.c_int)(page)()
        def f(x):
            {call}
            return 4
    """
    assert outcomes(sandbox, code, TESTS[0]) == ("error: ended",)


def test_bombs_are_bounded_and_the_next_job_is_normal(sandbox):
    body = """
        for _ in range(300):
            attempt("fork", os.fork)
            attempt("thread", threading.Thread(target=signal.pause).start)
            attempt("pipe", os.pipe)
        opened = []
        try:
            for _ in range(10_000): opened.append(os.open("/dev/urandom", os.O_RDONLY))
        except OSError: pass
        if len(opened) > 64: done.append("descriptors")
    """
    before = processes()
    escapes(sandbox, body)
    assert processes() == before
    assert outcomes(sandbox, "def f(x): return x * 2") == ("passed", "passed")


def test_memory_is_limited(sandbox):
    body = """
        import mmap
        for size in (512 << 20, 1 << 34):
            try:
                bytearray(size)
                done.append(size)
            except MemoryError: pass
            attempt("shared", lambda: mmap.mmap(-1, size))
    """
    escapes(sandbox, body)


# -- jails


def test_nothing_is_left_running_after_a_job_and_after_closing(sandbox):
    fresh = replace(sandbox, workers=1, limits=replace(QUICK, seconds=0.4))
    before = processes()
    outcomes(fresh, "def f(x): return 4")
    idle = processes()
    assert len(idle - before) <= 4  # bwrap, supervisor, zygote
    for code in (LOOPS["in the call"], LOOPS["sleeps and ignores signals"], CHEATS["exits in the call"], FORGE):
        outcomes(fresh, code, TESTS[0])
        assert processes() == idle
    fresh.close()
    assert until(lambda: processes() == before and not any_left(idle - before))
    assert outcomes(fresh, "def f(x): return 4", TESTS[0]) == ("passed",)
    fresh.close()
    assert until(lambda: processes() == before)


def test_a_killed_trainer_leaves_nothing_running(sandbox):
    code = (
        "from unmask.rewards.sandbox import *\n"
        f"s = LocalSandbox({sandbox.backend!r}, workers=2, limits=Limits(seconds=60, job_seconds=60))\n"
        "s.run([CodeJob('def f(): return 1', ('f()',))] * 2); print('warm', flush=True)\n"
        "s.run([CodeJob('while True: pass', ('f()',)), CodeJob('def f(): return 9**9', ('f()**f()**f()',))])"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert trainer.stdout is not None and trainer.stdout.readline() == b"warm\n"
    time.sleep(0.3)
    jails = processes(trainer.pid)
    assert len(jails) >= 8
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    assert until(lambda: not any_left(jails))


def test_a_jail_that_was_killed_is_replaced_and_a_kill_in_mid_job_is_no_infra_error(sandbox):
    fresh = replace(sandbox, limits=replace(QUICK, seconds=20.0, job_seconds=20.0))
    before = processes()
    assert outcomes(fresh, "def f(x): return 4", TESTS[0]) == ("passed",)
    for pid, _ in processes() - before:
        os.kill(pid, signal.SIGKILL)
    assert outcomes(fresh, "def f(x): return 4", TESTS[0]) == ("passed",)
    idle = processes()

    def kill_at_work():
        assert until(lambda: processes() > idle)
        for pid, _ in processes() - before:
            with suppress(ProcessLookupError):  # it dies with its parent
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    (outcome,) = outcomes(fresh, LOOPS["in the call"], TESTS[0])
    assert outcome in ("error: ended", "error: the test died")  # whichever process was killed first
    killer.join()
    fresh.close()
    assert until(lambda: processes() == before)


def test_a_jail_that_never_starts_is_an_infra_error(any_sandbox, monkeypatch):
    any_sandbox.check()
    broken = replace(any_sandbox, limits=replace(QUICK, job_seconds=5.5))
    monkeypatch.setattr(local, "choose", lambda _: (backends.BACKENDS[0], "/nowhere/python"))
    result = run(broken, "def f(x): return 4")
    assert result.outcomes == () and "does not work" in (result.infra_error or "")
    broken.close()


SPEAKER = """
import json, os, sys
def say(message):
    body = json.dumps(message).encode()
    os.write(1, len(body).to_bytes(4, "big") + body)
def hear():
    return json.loads(os.read(0, int.from_bytes(os.read(0, 4), "big")))
hear()
say({"ready": True})
"""


class Speaker(backends.Landlock):
    """Starts a program that says what it is told to, instead of ours."""

    def __init__(self, says: str):
        self.says = says

    def command(self, python, packages):
        return [python, "-c", SPEAKER + self.says]


def test_a_jail_that_answers_out_of_turn_is_closed(any_sandbox):
    jail = Jail(Speaker("hear(); say({'accepted': 'x'}); hear()"), local.choose("auto")[1], (), Limits())
    with pytest.raises(JailError, match="out of turn"):
        jail.run(CodeJob("", TESTS))
    assert not jail.alive


@pytest.mark.parametrize(("failures", "passed"), [(1, 1), (2, 0)])
def test_a_job_that_no_worker_became_ready_for_is_run_once_more(any_sandbox, failures, passed, monkeypatch):
    says = f"""
for time in range({failures} + 1):
    nonce = hear()["nonce"]
    say({{"accepted": nonce}})
    say({{"nonce": nonce, **({{"infra_error": "no worker"}} if time < {failures} else {{"outcomes": ["passed"]}})}})
"""
    python = local.choose("auto")[1]
    monkeypatch.setattr(local, "choose", lambda _: (Speaker(says), python))
    made = LocalSandbox(workers=1, limits=replace(QUICK, job_seconds=5.25 + failures))
    result = run(made, "", TESTS[0])
    assert result.passed == passed and result.infra_error == (None if passed else "no worker")
    made.close()


def test_without_a_working_backend_nothing_runs_and_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(backends.Bubblewrap, "missing", lambda self: "bwrap is not installed")
    monkeypatch.setattr(backends.Landlock, "missing", lambda self: "landlock: Function not implemented")
    local.choose.cache_clear()
    local._trial.cache_clear()
    try:
        for backend, says in [("auto", "bubblewrap.*landlock"), ("bubblewrap", "apt-get install bubblewrap")]:
            LocalSandbox(backend).close()  # another test may have left jails of this kind, ready to work
            with pytest.raises(UserError, match=rf"no sandbox can start.*never run without one.*{says}"):
                LocalSandbox(backend).run([CodeJob("", TESTS)])
    finally:
        local.choose.cache_clear()
        local._trial.cache_clear()


def test_a_jail_that_does_not_hold_is_refused(monkeypatch):
    if reason := why_not("landlock"):
        pytest.skip(reason)
    monkeypatch.setattr(backends.Landlock, "readable", lambda self, python, packages: ["/"])
    local.choose.cache_clear()
    local._trial.cache_clear()
    try:
        with pytest.raises(UserError, match="the jail does not hold"):
            LocalSandbox("landlock").check()
    finally:
        local.choose.cache_clear()
        local._trial.cache_clear()


def test_the_first_backend_that_works_is_used_and_said(caplog):
    local.choose.cache_clear()
    with caplog.at_level("INFO"):
        if reason := why_not("auto"):
            pytest.skip(reason)
    expected = "bubblewrap" if why_not("bubblewrap") is None else "landlock"
    assert f"code runs in the {expected} sandbox" in caplog.text


def test_packages_can_be_imported_where_they_are_named(sandbox):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "extra_package.py").write_text("def double(x): return 2 * x")
        code = "from extra_package import double as f"
        richer = replace(sandbox, packages=(folder,))
        assert outcomes(richer, code) == ("passed", "passed")
        richer.close()
        assert outcomes(sandbox, code) == ("load: ModuleNotFoundError",) * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give rights up")
def test_root_is_given_up(sandbox):
    code = "import os\ndef f(): return os.getuid(), os.geteuid(), os.getgid(), os.getegid(), *os.getgroups()"
    assert outcomes(sandbox, code, "assert 0 not in f()", "assert set(f()) == {65534}") == ("passed", "passed")


def test_impossible_settings_and_jobs_are_refused():
    with pytest.raises(UserError, match="workers"):
        LocalSandbox(workers=0)
    for name, value in [("seconds", 0), ("job_seconds", -1), ("memory_mib", 64), ("seconds", float("nan"))]:
        with pytest.raises(UserError, match=name):
            Limits(**{name: value})
    for tests, says in [((), "no tests"), (("assert",), "test 1 is not Python"), (("1", "1 ="), "test 2")]:
        with pytest.raises(ValueError, match=says):
            CodeJob("", tests)
    with pytest.raises(ValueError, match="setup is not Python"):
        CodeJob("", ("1",), setup="def")
    with pytest.raises(JailError, match="No such file"):
        Jail(backends.Landlock(), "/nowhere/python", (), Limits())


# -- names and values


@pytest.mark.parametrize(
    ("tests", "setup", "names"),
    [
        (["assert f(2) == 4"], "", ["f"]),
        (["assert set(f(2)) == {4}", "assert g(1)"], "", ["f", "g"]),
        (["assert sum(1, 2) == 3", "assert sum(2, 2) == abs(4)"], "", ["sum"]),
        (["assert sum(1, 2) == 3", "assert len([1]) == 1"], "", []),
        (["import math\nassert math.isclose(f(1), 2)"], "", ["f"]),
        (["assert isclose(f(1), 2)"], "from math import isclose as isclose", ["f"]),
        (["x = f(1)\nassert x == 2", "assert [y for y in f(2)] == []"], "", ["f"]),
        (["def check(h): assert h(1) == g\ncheck(f)"], "def g(): pass", ["f"]),
    ],
)  # fmt: skip
def test_a_candidate_provides_what_tests_read_and_nobody_else_defines(tests, setup, names):
    assert provided_names(tests, setup) == names
    assert "f" not in provided_names(tests, setup, entry="f")


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
        st.complex_numbers(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.integers(), st.text(), st.tuples(st.integers())), inner, max_size=4),
        st.frozensets(st.integers(), max_size=4),
        st.sets(st.one_of(st.text(), st.frozensets(st.integers(), max_size=2)), max_size=4),
    ),
    max_leaves=12,
)


def shape(value):
    """A value with its exact types."""
    if isinstance(value, list | tuple):
        return type(value).__name__, [shape(v) for v in value]
    if isinstance(value, dict):
        return "dict", [(shape(k), shape(v)) for k, v in value.items()]
    return type(value).__name__, repr(value) if isinstance(value, float) else value


@given(VALUES)
def test_values_cross_exactly(value):
    assert shape(decode(json.loads(json.dumps(encode(value))))) == shape(value)


def test_views_iterators_and_ranges_cross_as_what_they_are():
    assert decode(encode(range(3, 9, 2))) == range(3, 9, 2)
    assert next(decode(encode(x for x in "ab"))) == "a"
    assert decode(encode({1: 2}.keys())) == {1}
    assert list(decode(encode({1: 2}.values()))) == [2]
    assert decode(encode({1: (2,)}.items())) == {1: (2,)}.items()
    assert str(decode(encode([float("nan"), -0.0]))) == "[nan, -0.0]"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda i: (
            st.lists(i, max_size=3)
            | st.dictionaries(st.sampled_from([*"ifcbrdltszg", "dk", "dv", "di", "x"]), i, max_size=2)
        ),
    )
)
def test_hostile_messages_raise_ordinary_exceptions_only(message):
    try:
        decode(message)
    except Exception as error:
        assert not isinstance(error, AssertionError | TimeoutError)


def test_what_is_too_deep_too_long_or_of_a_class_does_not_cross():
    deep = []
    for _ in range(60):
        deep = [deep]
    for value in (deep, object(), type, len, iter(int, 1), [object()]):
        with pytest.raises(WireError):
            encode(value)
    hostile = None
    for _ in range(60):
        hostile = {"l": [hostile]}
    with pytest.raises(WireError):
        decode(hostile)
