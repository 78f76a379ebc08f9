"""Programs judged per second and core, under each backend that works here. Best of several rounds.

python benchmarks/sandbox_throughput.py [--workers 1 2] [--jobs 64]
"""

import argparse
import time

from unmask.errors import UserError
from unmask.rewards.sandbox import CodeJob, LocalSandbox

CODE = "import math, re\ndef f(x):\n    return sum(i * i for i in range(x)) % 97"


def expected(x: int) -> int:
    """What the program gives."""
    return sum(i * i for i in range(x)) % 97


def jobs(tests: int, count: int) -> list[CodeJob]:
    """Right programs with so many tests each."""
    return [CodeJob(CODE, tuple(f"assert f({x}) == {expected(x)}" for x in range(tests)))] * count


def best(sandbox: LocalSandbox, work: list[CodeJob], rounds: int = 5) -> float:
    """Seconds for the work."""
    seconds = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        results = sandbox.run(work)
        seconds = min(seconds, time.perf_counter() - start)
        if any(result.passed != len(job.tests) for result, job in zip(results, work, strict=True)):
            raise RuntimeError(f"a right program did not pass: {results}")
    return seconds


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--jobs", type=int, default=64)
    options = parser.parse_args()
    print("| backend | workers | start, ms | 1 test, ms | 3 tests, ms | 16 tests, ms | 3-test jobs/s |")
    print("|---|---|---|---|---|---|---|")
    for backend in ("bubblewrap", "landlock"):
        for workers in options.workers:
            sandbox = LocalSandbox(backend, workers=workers)
            try:
                sandbox.check()
            except UserError as error:
                print(f"| {backend} | not here: {error} |")
                break
            start = time.perf_counter()
            sandbox.run(jobs(1, 1))
            started = time.perf_counter() - start
            sandbox.run(jobs(1, 4 * workers))  # every worker has its jail
            each = [best(sandbox, jobs(tests, options.jobs)) / options.jobs for tests in (1, 3, 16)]
            cells = [f"{1000 * seconds:.1f}" for seconds in (started, *each)]
            print(f"| {backend} | {workers} | {' | '.join(cells)} | {1 / each[1]:.0f} |")
            sandbox.close()


if __name__ == "__main__":
    main()
