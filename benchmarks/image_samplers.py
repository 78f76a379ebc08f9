"""Emerge against MaskGIT on the world of shapes: success and diversity before and after training with each of them.

    python benchmarks/image_samplers.py --seeds 0 1 2

Trains the demo's base with each sampler (16 steps, MaskGIT with its own defaults), evaluates on the test captions at
8, 16 and 32 steps, and prints a table. `emerge` follows the exact reveal law, in which the number of slots that open in
a step is drawn; `emerge-counts` opens the mean number, as the demo does. Runs that are finished already (in --out) are
not repeated.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

from unmask import load
from unmask.describe import describe
from unmask.evaluation import diversity, evaluate
from unmask.run_directory import write_json
from unmask.samplers import Ancestral, MaskGIT, Sampler
from unmask.tasks import Shapes

SAMPLERS: dict[str, Sampler] = {
    "emerge": Ancestral(temperature=0.8),
    "emerge-counts": Ancestral(temperature=0.8, exact_count=True),
    "maskgit": MaskGIT(temperature=0.8),
}


def trained(out: Path, sampler: str, seed: int) -> Path:
    """The run that trained with a sampler."""
    folder = out / f"{sampler}-{seed}"
    if not (folder / "model").is_dir():
        words = ["train", "--config", "demo-shapes", "--seed", str(seed), "--out", str(folder), "--resume"]
        words += ["--sampler", json.dumps(describe(replace(SAMPLERS[sampler], steps=16)))]
        subprocess.run([sys.executable, "-m", "unmask", *words], check=True)
    return folder


def measured(model: str, sampler: str, steps: int, file: Path) -> dict[str, float]:
    """Success on 480 test captions, one draw each, and diversity of 4 draws for 60 of them."""
    if not file.is_file():
        drawn_by = replace(SAMPLERS[sampler], steps=steps)
        loaded = load(model, device="cpu", dtype="float32").answering("image")
        one = evaluate(loaded, Shapes(), sampler=drawn_by)
        four = evaluate(loaded, Shapes(), sampler=drawn_by, items=60, samples=4, seed=1)
        write_json(file, {"success": one["score"], "diversity": diversity(four["generations"])})
    return json.loads(file.read_text())


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--out", type=Path, default=Path("runs/image-samplers"))
    options = parser.parse_args()
    print("| sampler | steps | success before | after | diversity before | after |\n|---|---|---|---|---|---|")
    for sampler in options.samplers:
        runs = [trained(options.out, sampler, seed) for seed in options.seeds]
        for steps in options.steps:
            base = measured("builtin:shapes", sampler, steps, options.out / f"base-{sampler}-{steps}.json")
            after = [measured(str(run), sampler, steps, run / f"after-{steps}.json") for run in runs]
            success = " ".join(f"{one['success']:.3f}" for one in after)
            spread = mean(one["diversity"] for one in after)
            print(
                f"| {sampler} | {steps} | {base['success']:.3f} | {success} (mean "
                f"{mean(one['success'] for one in after):.3f}) | {base['diversity']:.3f} | {spread:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
