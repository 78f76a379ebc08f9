"""The process in which math-verify runs. A script of its own: it imports nothing of `unmask`.

Every line on standard input is a JSON pair [gold, answer]; every line on the output is `true` or `false`. It ends when
the input ends, and the kernel ends it when one pair takes more than a few seconds of processor time: nothing is left
behind by a parent that died.
"""

import json
import logging
import os
import resource
import sys

MEMORY = 2**30
"""Bytes of address space."""
CPU_SECONDS = 5
"""Per pair: the parent is stricter, and counts in real time."""


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no verdict
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable()

    from math_verify import parse, verify

    def read(text: str) -> list:
        return parse(f"${text}$", parsing_timeout=0)  # 0: none, as the parent counts the time

    def is_equal(gold: str, answer: str) -> bool:
        return verify(read(gold), read(answer), timeout_seconds=0)

    is_equal(r"\frac{1}{2}", "0.5")  # builds the tables of the parser
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        gold, answer = json.loads(line)
        try:
            equal = is_equal(gold, answer)
        except (MemoryError, RecursionError):
            equal = False
        print(json.dumps(equal), file=out, flush=True)


if __name__ == "__main__":
    main()
