"""Cost of the stateless hash beside torch's own generators. One thread, best of several rounds.

python benchmarks/random_numbers.py
"""

import time

import torch

from unmask.random import Random


def main() -> None:
    """Prints milliseconds for 1024 x 4096 numbers."""
    torch.set_num_threads(1)
    places = Random.root(0, "bench").fold(torch.arange(1024))
    weights = torch.ones(1024, 4096)
    logits = torch.zeros(1024, 4096)
    calls = {
        "hash: uniform": lambda: places.uniform(4096),
        "hash: Gumbel noise": lambda: places.gumbel(4096),
        "hash: Gumbel-max draw": lambda: (logits + places.gumbel(4096)).argmax(1),
        "torch.rand": lambda: torch.rand(1024, 4096),
        "torch.multinomial": lambda: torch.multinomial(weights, 1),
    }
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(8):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    for name, value in seconds.items():
        print(f"{name:22s} {value * 1e3:6.1f} ms")


if __name__ == "__main__":
    main()
