"""The demo with every method and several seeds, and the control whose rewards say nothing. Prints a table.

    python benchmarks/demo_methods.py --seeds 0 1 2 3 4 --methods maskgrpo diffu-grpo unigrpo-ramp shuffled

Runs that are finished already (in --out) are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def run(out: Path, task: str, method: str, seed: int) -> dict:
    """One demo in a process of its own; its summary."""
    folder = out / f"{task}-{method}-{seed}"
    if not (folder / "summary.json").is_file():
        words = ["demo", "--task", task, "--seed", str(seed), "--out", str(folder)]
        words += ["--shuffle_rewards", "true"] if method == "shuffled" else ["--method", method]
        subprocess.run([sys.executable, "-m", "unmask", *words], check=True)
    return json.loads((folder / "summary.json").read_text())


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sudoku")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=["maskgrpo", "diffu-grpo", "unigrpo-ramp", "shuffled"])
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    options = parser.parse_args()
    print("| method | before | after, seeds " + " ".join(map(str, options.seeds)) + " | mean | seconds |")
    print("|---|---|---|---|---|")
    for method in options.methods:
        found = [run(options.out, options.task, method, seed) for seed in options.seeds]
        after = [summary["after"] for summary in found]
        seconds = sum(summary["seconds"] for summary in found) / len(found)
        each = " ".join(f"{value:.3f}" for value in after)
        print(f"| {method} | {found[0]['before']:.3f} | {each} | {sum(after) / len(after):.3f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
