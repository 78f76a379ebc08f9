"""What runs inside a jail or a micro-VM, as text, and what it is told."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from unmask.rewards.sandbox.jobs import CodeJob, Limits, provided_names

_INSIDE = "unmask.rewards.sandbox.inside"
_MODULES = ("wire", "confine", "worker", "judge", "supervisor")  # in the order in which they import each other
_BOOT = """import sys
if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed")
sys.path[:] = [p for p in sys.path if p]
package = sys.modules[sys.argv[1]] = type(sys)(sys.argv[1])
for name, source in zip(sys.argv[2::2], sys.argv[3::2]):
    module = sys.modules[package.__name__ + "." + name] = type(sys)(name)
    setattr(package, name, module)
    exec(compile(source, name, "exec"), module.__dict__)
module.main()"""
OPTIONS = ("-s", "-S", "-B")
"""Of the interpreter."""
ENVIRONMENT = {"PATH": "/usr/bin", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def words(python: str) -> list[str]:
    """The command of a jail's program."""
    return [python, *OPTIONS, "-c", _BOOT, _INSIDE, *_sources()]


def script() -> str:
    """The program of a micro-VM as one file, which needs the standard library only."""
    return f"import sys\nsys.argv[1:] = {[_INSIDE, *_sources(), *_source('guest')]!r}\nsys.path[:1] = []\n{_BOOT}\n"


def order(limits: Limits, packages: Sequence[str], readable: Sequence[str] | None) -> dict[str, Any]:
    """The first message to a program: what holds for all its jobs."""
    return {
        "readable": readable,
        "packages": list(packages),
        "memory": limits.memory_mib << 20,
        "cpu_seconds": int(limits.seconds) + 2,
        "seconds": limits.seconds,
        "job_seconds": limits.job_seconds,
    }


def message(job: CodeJob, nonce: str) -> dict[str, Any]:
    """A job as a program is told it; its answer must have the nonce."""
    return {
        "nonce": nonce,
        "code": job.code,
        "tests": job.tests,
        "setup": job.setup,
        "names": provided_names(job.tests, job.setup, job.entry),
        "entry": job.entry,
    }


@cache
def _sources() -> tuple[str, ...]:
    return tuple(word for name in _MODULES for word in _source(name))


def _source(name: str) -> tuple[str, str]:
    return name, (Path(__file__).parent / "inside" / f"{name}.py").read_text(encoding="utf-8")
