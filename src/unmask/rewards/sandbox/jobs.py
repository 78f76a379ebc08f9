"""What is run, and what comes back: the interface that every executor of untrusted code has."""

import ast
import builtins
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from unmask.errors import UserError


@dataclass(frozen=True)
class CodeJob:
    """A candidate's code and the tests it has to pass.

    Args:
        code: the candidate's source, untrusted.
        tests: source of each test, trusted: it passes if it runs to its end. A test calls functions of the candidate by
            name; arguments and results are numbers, texts, bytes, None and containers of these.
        setup: source that runs before each test, on the side of the tests.
        entry: the function under test; tests find it also as `candidate`. None: the names that the tests use tell.

    Raises:
        ValueError: there are no tests, or a test or the setup is not Python.
    """

    code: str
    tests: tuple[str, ...]
    setup: str = ""
    entry: str | None = None

    def __post_init__(self):
        if not self.tests:
            raise ValueError("there are no tests")
        for name, source in (("setup", self.setup), *((f"test {i}", t) for i, t in enumerate(self.tests, start=1))):
            try:
                ast.parse(source)
            except (SyntaxError, ValueError, RecursionError) as error:
                raise ValueError(f"{name} is not Python: {error}") from error


@dataclass(frozen=True)
class CodeResult:
    """What became of a job.

    Args:
        outcomes: per test `passed`, `failed` (an assert), `timeout`, `load: TYPE` (the candidate's code raised TYPE
        when
            it was loaded), or `error: WHAT` (a call or the test raised, or the worker died: `error: ended`).
        infra_error: why nothing is known about the candidate; None where something is.
    """

    outcomes: tuple[str, ...] = ()
    infra_error: str | None = None

    @property
    def passed(self) -> int:
        """The number of tests that passed."""
        return self.outcomes.count("passed")


@dataclass(frozen=True)
class Limits:
    """What a candidate may use.

    Args:
        seconds: of one test, on the wall clock, loading the code included; above 0.
        job_seconds: of all tests of a job; those that do not get their turn are time-outs. Above 0.
        memory_mib: address space of the process of a candidate, and of a test; at least 128.
    """

    seconds: float = 3.0
    job_seconds: float = 10.0
    memory_mib: int = 512

    def __post_init__(self):
        for name, least in (("seconds", 0), ("job_seconds", 0), ("memory_mib", 127)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > least):
                raise UserError(f"sandbox: {name} must be above {least}, not {value}")


class CodeExecutor(ABC):
    """Runs untrusted code. Stateless and order-free, from any thread."""

    @abstractmethod
    def check(self) -> None:
        """Make sure that code can run.

        Raises:
            UserError: this machine or account cannot run code safely; the message names the remedy.
        """

    @abstractmethod
    def run(self, jobs: Sequence[CodeJob]) -> list[CodeResult]:
        """One result per job, in order; whatever the candidates do, it returns within the limits.

        Raises:
            UserError: as `check`.
        """


def provided_names(tests: Sequence[str], setup: str = "", entry: str | None = None) -> list[str]:
    """The names that a candidate may provide to its tests, read from trusted text alone.

    All names that the tests read, except builtins and what the tests or the setup define: otherwise a candidate that
    defines `set` or `len` would replace it inside the test's own expression. Only where the tests call nothing but
    builtins, as for a task that asks for a function `sum`, the builtin that every test calls is the function under
    test.
    """
    read, defined, called = set[str](), set[str](), list[set[str]]()
    for source, is_test in [(setup, False), *((test, True) for test in tests)]:
        nodes = list(ast.walk(ast.parse(source)))
        for node in nodes:
            match node:
                case ast.Name(id=name, ctx=ast.Load()):
                    read |= {name} if is_test else set()
                case ast.Name(id=name) | ast.arg(arg=name):
                    defined.add(name)
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    defined.add(name)
                case ast.alias(name=name, asname=other):
                    defined.add((other or name).partition(".")[0])
                case _:
                    pass
        if is_test:
            called.append({n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)})
    names = {name for name in read - defined if not hasattr(builtins, name)} - {entry, "candidate"}
    if not names and entry is None:
        names = set.intersection(*called) & set(dir(builtins))
    return sorted(names)
