"""Tiny runs for tests: a random model of a built-in world, and a reward that every answer gets some of."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unmask.config import TrainConfig, parse
from unmask.models.scratch import Scratch
from unmask.rl import train

REWARD = '''
def ones(completions, prompts, puzzle, **columns):
    """Share of ones, a little more where the puzzle has one."""
    return [(text.count("1") + 0.1 * row.count("1")) / 16 for text, row in zip(completions, puzzle)]
'''

SETTINGS: dict[str, Any] = {
    "task": {"class_path": "Sudoku", "init_args": {"validation_items": 12, "test_items": 12}},
    "sampler": {"class_path": "TopProb", "init_args": {"steps": 4}},
    "prompts": 4,
    "answers": 4,
    "epochs": 2,
    "steps": 3,
    "optimizer": {"lr": 1e-2},
    "compute": {"device": "cpu", "dtype": "float64", "precision": "float32"},
    "logged_rollouts": 4,
}


def tiny_model(folder: Path) -> Path:
    """A random model with the alphabet of sudoku, saved."""
    if not folder.exists():
        Scratch(dim=16, layers=2, heads=2, ffn=32, dtype="float32").build("01234", 0).save(folder)
    return folder


def sandbox_works() -> bool:
    """Whether programs can be judged on this machine."""
    from unmask.errors import UserError
    from unmask.rewards.sandbox import LocalSandbox

    try:
        LocalSandbox().check()
    except UserError:
        return False
    return True


def words(folder: Path, out: str, *more: str, method: str = "maskgrpo") -> list[str]:
    """Words of `unmask train` for a tiny run; `more` override."""
    folder.mkdir(exist_ok=True)
    reward, config = folder / "ones.py", folder / "tiny.yaml"
    for file, content in ((reward, REWARD), (config, json.dumps(SETTINGS))):
        if not file.exists() or file.read_text() != content:
            file.write_text(content)
    given = ["--config", str(config), "--method", method, "--model", str(tiny_model(folder / "model"))]
    return [*given, "--reward", f"{reward}:ones", "--out", str(folder / out), *more]


def run(folder: Path, out: str, *more: str, resume: bool = False, method: str = "maskgrpo"):
    """Trains in this process."""
    config = parse(TrainConfig, "train", words(folder, out, *more, method=method))
    return train(config, resume)


def launch(processes: int, module: Sequence[str], timeout: float = 280) -> subprocess.CompletedProcess:
    """Starts `python -m MODULE ...` in several processes that talk over gloo."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        number = port.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-port", str(number), *module]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=variables, check=False)


def weights(run_directory: Path) -> dict[str, torch.Tensor]:
    """Trainable parameters of the last checkpoint."""
    last = max((run_directory / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    return load_file(last / "trainable.safetensors")


def distance(a: Path, b: Path) -> float:
    """Largest difference between the final parameters of two runs."""
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def metrics(run_directory: Path) -> list[dict[str, Any]]:
    """Rows without times."""
    rows = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/", "rollout/tokens_per_second")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]
