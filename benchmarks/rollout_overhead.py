"""How much a rollout costs beyond the forwards of its backbone, and what bfloat16 gives. Paired, interleaved.

    python benchmarks/rollout_overhead.py [--model builtin:sudoku] [--rows 256] [--rounds 5]

A: the sampler as training calls it (with recording). B: the same forwards on the same canvases for the same rows, and
nothing else. Best of the rounds; the ratio A / B is the figure.
"""

import argparse
import time

import torch

import unmask
from unmask.config import parse_object
from unmask.models import Model
from unmask.random import Random
from unmask.runtime import Compute, Runtime
from unmask.samplers import Sampler
from unmask.tasks import Sudoku
from unmask.types import Denoiser


class Recorder(Denoiser):
    """Keeps what the sampler asks, so that it can be asked again without a sampler."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.k, self.calls = denoiser, denoiser.k, []

    def __call__(self, canvas, x, at):
        self.calls.append((canvas, x.clone(), at))
        return self.denoiser(canvas, x, at)


def best(rounds: int, *calls) -> list[float]:
    """Best seconds of each call over interleaved rounds, after one warm-up."""
    seconds = [float("inf")] * len(calls)
    for number in range(rounds + 1):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if number:
                seconds[index] = min(seconds[index], time.perf_counter() - start)
    return seconds


@torch.no_grad()
def measure(model: Model, precision: str, rows: int, rounds: int) -> None:
    """Prints one line."""
    runtime = Runtime(Compute(device="cpu", precision=precision))
    policy = model.policy(autocast=runtime.autocast)
    sampler = parse_object(Sampler, model.metadata["sampler"], "sampler")
    puzzles = [row["prompt"] for row in Sudoku().rows("train")[:rows]]
    canvas, random = model.modality.encode(puzzles, 16), Random.root(0, "bench").fold(torch.arange(rows))
    recorder = Recorder(policy)
    sampler(recorder, canvas, random)
    asked = []
    for shown, x, at in recorder.calls:
        asked.append((policy.fill(shown, x), at[:, 0] * shown.ids.shape[1] + shown.slots[at[:, 0], at[:, 1]]))

    def bare() -> None:
        for ids, wanted in asked:
            with runtime.autocast():
                model.backbone(ids, rows=wanted)

    rollout, forwards = best(rounds, lambda: sampler(policy, canvas, random, record=True), bare)
    print(
        f"{precision:9s} rollout {rollout:.3f} s, its forwards {forwards:.3f} s, ratio {rollout / forwards:.3f}, "
        f"{rows * 16 / rollout:,.0f} tokens/s, {len(asked)} forwards, {torch.get_num_threads()} threads"
    )


def main() -> None:
    """Runs both precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:sudoku")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = unmask.load(options.model, dtype="float32")
    for precision in ("float32", "bfloat16"):
        measure(model, precision, options.rows, options.rounds)


if __name__ == "__main__":
    main()
