"""Programs in micro-VMs of a service: verdicts are those of this machine's sandbox, and its failures are nobody's."""

import os
import sys
import textwrap
import threading
import time
from dataclasses import replace

import pytest

import micro_vms
from test_sandbox import CHEATS, LOOPS, TESTS, outcomes, run, why_not
from unmask.cli import main
from unmask.errors import UserError
from unmask.rewards.sandbox import CodeJob, CodeResult, E2BSandbox, Limits, e2b, local, micro_vm
from unmask.rewards.sandbox.inside import confine

QUICK = Limits(seconds=0.7, job_seconds=6.0)
RIGHT, WRONG = (CodeJob(code, TESTS) for code in ("def f(x): return 2 * x", "def f(x): return 3"))
ENDLESS = CodeJob(LOOPS["in the call"], TESTS[:1])
KEY = "e2b_0123456789"


@pytest.fixture
def service(monkeypatch):
    made = micro_vms.Service()
    monkeypatch.setitem(sys.modules, "e2b", made.package())
    monkeypatch.setenv("E2B_API_KEY", KEY)
    monkeypatch.setattr(e2b, "_LONGEST_PAUSE", 0.01)
    yield made
    for fleet in list(e2b._fleets):
        fleet[0].close()
    assert not made.running


def sandbox(**settings) -> E2BSandbox:
    if reason := why_not("auto"):
        pytest.skip(reason)
    python = local.choose("auto")[1]  # one that everybody may read
    return E2BSandbox(**{"limits": QUICK, "workers": 1, "python": python, "lifetime": 300, **settings})


def passed(results: list[CodeResult]) -> list[int | None]:
    return [None if result.infra_error else result.passed for result in results]


def test_verdicts_are_real_and_in_order(service):
    jobs = [RIGHT, WRONG, CodeJob("def f(x) return 4", TESTS), CodeJob("def f(x): 1 / 0", TESTS[:1]), RIGHT]
    got = sandbox().run(jobs)
    assert [result.outcomes for result in got] == [
        ("passed", "passed"),
        ("failed", "failed"),
        ("load: SyntaxError",) * 2,
        ("error: ZeroDivisionError",),
        ("passed", "passed"),
    ]
    assert sandbox().run(jobs[::-1])[::-1] == got
    assert len(service.asked) == 1  # one VM for all of them
    assert service.asked[0] == {"template": "base", "timeout": 300, "online": False}
    assert sandbox().run([]) == []


NAMES = [
    *("exits in the call", "object equal to everything", "defines the builtins of the test", "patches json and os"),
    *("patches the sandbox's own modules", "forged frames on every descriptor", "kills its elders", "segfault"),
    *("memory hog", "deep result", "endless result"),
]


def test_no_cheat_passes_or_becomes_an_infra_error(service):
    results = sandbox().run([CodeJob(textwrap.dedent(CHEATS[name]), TESTS[1:]) for name in NAMES])
    for name, result in zip(NAMES, results, strict=True):
        assert result.infra_error is None and "passed" not in result.outcomes, name
    assert len(service.vms) == 1 and passed(sandbox().run([RIGHT])) == [2]


def test_a_program_that_does_not_end_loses_this_test_only(service):
    code = "def f(x):\n    while x == 3: pass\n    return 2 * x"
    assert outcomes(sandbox(), code, TESTS[0], "assert f(3)", TESTS[0]) == ("passed", "timeout", "passed")


FIND = """
    import os
    def texts(*paths):
        for path in paths:
            for folder, _, files in os.walk(path):
                for file in files:
                    try: yield open(os.path.join(folder, file), errors="replace").read(1 << 16)
                    except OSError: pass
    def f(folder):
        mine = [f"/proc/{pid}/{name}" for pid in (os.getppid(), "self", 1) for name in ("environ", "cmdline", "mem")]
        for path in mine:
            try: yield open(path, "rb").read(1 << 16).decode(errors="replace")
            except (OSError, OverflowError): pass
        yield from texts(folder)
    g = f
    def f(folder): return sum("9035768"[::-1] in text or "_9876543210"[::-1] in text for text in g(folder))
"""


@pytest.mark.parametrize("landlock", [True, False])
def test_a_program_finds_neither_tests_nor_the_key(service, landlock, monkeypatch):
    if landlock:
        try:
            confine.landlock_version()
        except OSError as error:
            pytest.skip(str(error))
    else:  # the kernel of a VM may have none
        source = micro_vm.program.script().replace("confine.landlock_version()", "raise OSError")
        monkeypatch.setattr(micro_vm.program, "script", lambda: source)
    fleet = sandbox()
    fleet.check()
    assert service.vms[0].commands_run == 1
    folder = str(service.vms[0].root)
    tests = (f"assert f({folder!r}) == 8675309", f"assert f({folder!r}) is 0")
    assert outcomes(fleet, FIND, *tests) == ("failed", "passed")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give rights up")
def test_root_of_the_vm_is_given_up(service):
    code = "import os\ndef f(): return os.getuid(), os.geteuid(), os.getgid(), os.getegid(), *os.getgroups()"
    assert outcomes(sandbox(), code, "assert set(f()) == {65534}", "f()") == ("passed", "passed")


def test_a_login_shell_may_say_something_first(service):
    service.noise = 'echo "Welcome to {}"; echo; '
    assert passed(sandbox().run([RIGHT, WRONG])) == [2, 0]


def test_work_is_spread_and_vms_are_kept_and_ended(service):
    at_once, most, lock = [0], [0], threading.Lock()

    def command(vm):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.1)
        with lock:
            at_once[0] -= 1

    service.command = command
    fleet = sandbox(workers=3, batch=2)
    for _ in range(2):
        assert passed(fleet.run([RIGHT, WRONG] * 4)) == [2, 0] * 4
    assert 1 < most[0] <= 3 and len(service.vms) <= 3 and len(service.running) == len(service.vms)
    fleet.close()
    assert not service.running
    assert passed(fleet.run([RIGHT])) == [2]


def test_a_vm_near_its_end_is_replaced(service, monkeypatch):
    fleet = sandbox(batch=1, lifetime=40)
    fleet.check()
    later = time.monotonic() + 5
    monkeypatch.setattr(micro_vm, "time", type("Clock", (), {"monotonic": staticmethod(lambda: later)}))
    assert passed(fleet.run([RIGHT])) == [2]
    assert len(service.vms) == 2 and len(service.running) == 1


# -- a service that fails


def raising(*errors):
    """Raises these, one per call, and nothing after them."""
    left = list(errors)

    def call(_):
        if left and (error := left.pop(0)) is not None:
            raise error

    return call


@pytest.mark.parametrize(
    "error",
    [
        micro_vms.SandboxException("500: no"),
        ConnectionError("reset"),
        Exception("Command ended without an end event"),
        micro_vms.SandboxNotRunningException("The sandbox was not found"),
    ],
)
@pytest.mark.parametrize("where", ["create", "command"])
def test_what_fails_twice_is_asked_a_third_time_and_then_given_up(service, error, where):
    setattr(service, where, raising(error, error))
    assert passed(sandbox().run([RIGHT, WRONG])) == [2, 0]
    sandbox().close()
    setattr(service, where, raising(*[error] * 3))
    first, second = sandbox().run([RIGHT, WRONG])
    assert first.outcomes == () and str(error) in (first.infra_error or "") and second == first
    assert not service.running
    assert passed(sandbox().run([RIGHT, WRONG])) == [2, 0]  # the next batch finds it well


@pytest.mark.parametrize("busy", [micro_vms.RateLimitException("429"), micro_vms.ServiceBusyException("503")])
def test_a_busy_service_is_waited_for_until_the_deadline(service, busy):
    service.create = raising(*[busy] * 10)
    assert passed(sandbox().run([RIGHT])) == [2]
    sandbox().close()
    service.create = lambda _: (_ for _ in ()).throw(busy)
    start = time.monotonic()
    hasty = sandbox(deadline=0.3, limits=replace(QUICK, job_seconds=0.7))
    assert passed(hasty.run([RIGHT])) == [None]
    assert time.monotonic() - start < 3


def test_workers_beyond_the_plan_use_the_vms_there_are(service):
    def create(number):
        if number > 0:
            raise micro_vms.RateLimitException("429: the maximum of concurrent sandboxes is 1")

    service.create = create
    assert passed(sandbox(workers=3).run([RIGHT, WRONG] * 3)) == [2, 0] * 3
    assert len(service.vms) == 1


def test_slow_replies_end_with_the_time_of_a_batch(service):
    hasty = sandbox(deadline=0.5, limits=replace(QUICK, job_seconds=0.7))
    hasty.check()
    service.noise = "sleep 20; "
    start = time.monotonic()
    (result,) = hasty.run([RIGHT])
    assert "deadline_exceeded" in (result.infra_error or "") and time.monotonic() - start < 4


def test_a_vm_whose_command_the_service_was_too_busy_for_is_kept(service):
    fleet = sandbox()
    fleet.check()
    service.command = raising(*[micro_vms.RateLimitException("429")] * 3)
    assert passed(fleet.run([RIGHT, WRONG])) == [2, 0]
    assert len(service.vms) == 1
    assert [file.name for file in (service.vms[0].root / "root/unmask").iterdir()] == ["program.py"]


def accepted(heard):
    """Jobs that the other side knows to be accepted: by whole lines."""
    return heard.rpartition("\n")[0].count('"accepted"')


def losing(service, times, which):
    """Ends the VM in the middle of the job whose acceptance is the `which`-th of a command, so many times."""
    left, lock = [times], threading.Lock()

    def command(vm):
        if vm.commands_run == 1:
            return None
        heard = [""]

        def hear(text):
            heard[0] += text
            with lock:
                if left[0] and accepted(heard[0]) >= which:
                    left[0] -= 1
                    vm.running = False
                    vm._end_process()
            return text

        return hear

    service.command = command


def test_one_lost_vm_costs_nothing_and_two_are_the_doing_of_the_program(service):
    losing(service, 1, 3)
    got = sandbox().run([RIGHT, WRONG, ENDLESS, RIGHT])
    assert [result.outcomes for result in got] == [("passed",) * 2, ("failed",) * 2, ("timeout",), ("passed",) * 2]
    assert len(service.vms) == 2 and len(service.running) == 1
    sandbox().close()
    losing(service, 2, 1)  # it is alone in its second VM
    got = sandbox(tries=1).run([ENDLESS, RIGHT])
    assert [result.outcomes for result in got] == [("error: ended",), ("passed",) * 2]


def test_a_program_whose_end_takes_ours_along_has_failed(service):
    def command(vm):
        if vm.commands_run == 1:
            return None
        heard = [""]

        def hear(text):
            heard[0] += text
            if accepted(heard[0]) == 2 and vm.process.poll() is None:
                os.killpg(vm.process.pid, 9)
            return text

        return hear

    service.command = command
    got = sandbox().run([RIGHT, ENDLESS])
    assert [result.outcomes for result in got] == [("passed",) * 2, ("error: ended",)]


@pytest.mark.parametrize(
    "forged",
    [
        lambda text: text.replace("failed", "passed").replace('"nonce": "', '"nonce": "0'),
        lambda text: text.replace('"outcomes"', '"outcome"'),
        lambda text: text + "x" * (1 << 24),
        lambda text: text.replace("\n", "\n[]\n"),
        lambda text: text.replace("\n", '\n{"nonce": "", "outcomes": ["passed", "passed"]}\n'),
    ],
)
def test_answers_without_the_nonce_or_shape_never_count(service, forged):
    changed = []

    def in_lines():
        left = ""

        def hear(text):
            nonlocal left
            *lines, left = (left + text).splitlines(keepends=True) + [""] * text.endswith("\n")
            changed.extend(line for line in lines if forged(line) != line)
            return "".join(map(forged, lines))

        return hear

    service.command = lambda vm: in_lines() if vm.commands_run > 1 else None
    (result,) = sandbox().run([WRONG])
    assert changed and result.passed == 0
    assert result.infra_error or result.outcomes == ("error: ended",) * 2


# -- what is missing


def test_package_key_and_template_are_told_in_one_line(service, monkeypatch):
    monkeypatch.delenv("E2B_API_KEY")
    with pytest.raises(UserError, match="needs a key: set the environment variable E2B_API_KEY"):
        sandbox().check()
    monkeypatch.setenv("E2B_API_KEY", KEY)
    service.create = raising(micro_vms.AuthenticationException(f"401: Unauthorized {KEY}"))
    with pytest.raises(UserError, match=r"401: Unauthorized .*; set E2B_API_KEY to a key that is valid") as error:
        sandbox().run([RIGHT])
    assert KEY not in str(error.value)
    service.create = raising(*[micro_vms.SandboxException("404: template 'mine' not found")] * 3)
    with pytest.raises(UserError, match=r"no VM of the template 'mine': .*404"):
        sandbox(template="mine").check()
    with pytest.raises(UserError, match=r"cannot be run safely.*there is no python9; name another"):
        sandbox(python="python9").check()
    monkeypatch.setitem(sys.modules, "e2b", None)
    with pytest.raises(UserError, match=r"needs the package 'e2b': pip install 'unmask\[e2b\]'"):
        sandbox().check()


def test_a_vm_that_does_not_hold_is_refused(service, monkeypatch):
    source = micro_vm.program.script().replace("confine.restrict_calls(program)", "None")
    monkeypatch.setattr(micro_vm.program, "script", lambda: source)
    with pytest.raises(UserError, match="cannot be run safely in VMs of the template 'base': it does not hold"):
        sandbox().check()
    assert passed(sandbox().run([RIGHT])) == [None]
    assert not service.running


def test_no_message_and_no_vm_gets_the_key(service, caplog):
    service.create = raising(micro_vms.SandboxException(f"500 for {KEY}"), None)
    with caplog.at_level("DEBUG"):
        fleet = sandbox(tries=1)
        (result,) = fleet.run([RIGHT])
        fleet.check()
    assert "***" in (result.infra_error or "") and KEY not in result.infra_error + caplog.text + repr(fleet)
    assert "code runs in micro-VMs of E2B (base)" in caplog.text
    assert run(fleet, "import os\ndef f(): return len(os.environ)", "assert f() <= 5").passed == 1


@pytest.mark.parametrize(
    "settings",
    [{"workers": 0}, {"batch": 0}, {"tries": 0}, {"deadline": 0.0}, {"lifetime": 100}, {"template": ""}],
)
def test_impossible_settings(settings):
    with pytest.raises(UserError, match=f"sandbox: .*{next(iter(settings))}"):
        E2BSandbox(**settings)


def test_the_command_line_selects_it_and_exits_2_without_a_key(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "e2b", micro_vms.Service().package())
    words = ["--task.sandbox", "E2BSandbox", "--task.sandbox.workers", "8"]
    assert main(["eval", "builtin:programs", "--task", "programs", "--items", "1", *words]) == 2
    assert "sandbox E2B needs a key" in capsys.readouterr().err
    config = ["--config", "demo-programs", "--out", str(tmp_path / "run")]
    assert main(["train", *config, *words]) == 2
    assert "sandbox E2B needs a key" in capsys.readouterr().err


def test_names_and_signatures_are_those_of_the_package():
    import inspect

    real = pytest.importorskip("e2b", reason="the extra e2b is not installed")
    from e2b.sandbox_sync.commands.command import Commands
    from e2b.sandbox_sync.filesystem.filesystem import Filesystem

    fake = micro_vms.Service().package()
    for theirs, ours in ((real.Sandbox.create, fake.Sandbox.create), (Commands.run, micro_vms.VM.run)):
        known = inspect.signature(theirs).parameters
        for name in inspect.signature(ours).parameters:
            assert name in known or (name == "request_timeout" and "opts" in known), name
    assert {"path", "data", "user", "request_timeout"} <= set(inspect.signature(Filesystem.write).parameters)
    for name in ("RateLimitException", "ServiceBusyException", "AuthenticationException", "CommandExitException"):
        assert issubclass(getattr(real, name), Exception)
