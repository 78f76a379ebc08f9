"""Reports of synthetic run directories: what is on the page, and that nothing missing or hostile breaks it."""

import json
import math
from pathlib import Path
from typing import Any

SOLUTIONS = ("1234341221434321", "1243342121344312", "1324423124133142", "1342243131244213")
HOSTILE = "<script>alert('x')</script> & \"quotes\" <img src=http://evil.example/x.png>"
CONFIG = """\
# device: cpu, threads: 1
model: builtin:sudoku
task:
  class_path: unmask.tasks.sudoku.Sudoku
method: maskgrpo
seed: 7
steps: {steps}
"""


def noise(*key: int) -> float:
    """A fixed number in [-1, 1] for every key."""
    return math.sin(sum((n + 1) * k for n, k in enumerate(key, 12)) * 78.233) * 43758.5453 % 2 - 1


def sudoku_answer(item: int, right: bool, steps: int = 16) -> dict[str, Any]:
    """A 4x4 board with some blanks; a wrong answer repeats a digit in its row."""
    truth = SOLUTIONS[item % len(SOLUTIONS)]
    blanks = sorted(range(16), key=lambda cell: noise(item, cell))[:8]
    prompt = "".join("0" if cell in blanks else digit for cell, digit in enumerate(truth))
    tokens = list(truth)
    if not right:
        for cell in blanks[:2]:
            tokens[cell] = str(int(tokens[cell]) % 4 + 1)
    order = sorted(range(16), key=lambda cell: (cell in blanks, noise(item, cell, 3)))
    at = [order.index(cell) * steps // 16 for cell in range(16)]
    return {"prompt": prompt, "truth": truth, "tokens": tokens, "revealed_at": at, "text": "".join(tokens)}


WORDS = [
    "To",
    "find",
    "the",
    "total",
    ",",
    "we",
    "first",
    "add",
    "the",
    "apples",
    "that",
    "Ann",
    "bought",
    "to",
    "those",
    "that",
    "she",
    "had",
    ".",
    "She",
    "had",
    "12",
    "and",
    "bought",
    "7",
    "more",
    ",",
    "so",
    "she",
    "has",
    "12",
    "+",
    "7",
    "=",
    "19",
    "apples",
    ".",
    "Then",
    "she",
    "gives",
    "away",
    "5",
    "of",
    "them",
    ",",
    "which",
    "leaves",
    "19",
    "-",
    "5",
    "=",
    "{}",
    "apples",
    ".",
    "The",
    "answer",
    "is",
    "{}",
    ".",
]


def text_answer(item: int, right: bool, slots: int = 96) -> dict[str, Any]:
    """A worked answer in words, filled up with end tokens."""
    number = str(14 if right else 13 + item % 2 * 3)
    tokens = [word.format(number) + " " for word in WORDS] + ["<|eot_id|>"]
    tokens = (tokens + ["<|endoftext|>"] * slots)[:slots]
    order = sorted(range(slots), key=lambda slot: slot // 32 * 4 + noise(item, slot))
    at = [order.index(slot) // 2 for slot in range(slots)]
    prompt = f"Item {item}: Ann had 12 apples, bought 7 and gave 5 away. How many are left?"
    return {"prompt": prompt, "truth": "14", "tokens": tokens, "revealed_at": at, "text": "".join(tokens)}


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluation(made, correct: list[bool], task: str) -> dict[str, Any]:
    score, n = sum(correct) / len(correct), len(correct)
    half = 1.96 * math.sqrt(score * (1 - score) / n)
    generations = []
    for item, right in enumerate(correct):
        answer = made(item, right)
        generations.append(
            {
                "id": f"test-{item}",
                "task": task,
                "question": answer["prompt"],
                "ground_truth": answer["truth"],
                "generation": answer["text"],
                "correct": right,
                "tokens": answer["tokens"],
                "revealed_at": answer["revealed_at"],
            }
        )
    return {
        "score": score,
        "interval": [score - half, score + half],
        "task": task,
        "split": "test",
        "protocol": "greedy",
        "parser": "digits",
        "items": n,
        "sampler": {"class": "TopProb", "steps": 16, "temperature": 0.0},
        "generations": generations,
    }


def make_run(folder: Path, steps: int = 60, made=sudoku_answer, task: str = "sudoku", method: str = "maskgrpo") -> Path:
    """A run directory as reinforcement learning leaves it: 40 test items, 12 fixed, 3 broken."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(steps=steps).replace("maskgrpo", method))
    command = f"unmask train --config demo-{task} --out {folder.name} --seed 7"
    env = {"date": "2026-11-24T09:00:00", "device": "cpu", "commit": "be2ab4b", "command": command}
    (folder / "env.json").write_text(json.dumps({**env, "versions": {"torch": "2.13.0", "peft": None}}))
    rows, rollouts = [], []
    for step in range(1, steps + 1):
        t = step / steps
        success = min(1.0, max(0.0, 0.45 + 0.4 * (1 - math.exp(-3 * t)) + 0.06 * noise(step)))
        row = {
            "step": step,
            "rollout/reward": 0.1 + 0.9 * success,
            "rollout/success": success,
            "rollout/length": 16.0,
            "rollout/zero_std_share": 0.2 + 0.4 * t + 0.05 * noise(step, 1),
            "rollout/tokens_per_second": 21000 + 900 * noise(step, 2),
            "reward/solved": success,
            "reward/format": min(1.0, 0.8 + 0.2 * t),
            "update/kl": 0.02 * t * (1.2 + 0.4 * noise(step, 3)),
            "update/clip_fraction": 0.05 + 0.02 * noise(step, 4),
            "update/grad_norm": 0.8 - 0.4 * t + 0.2 * noise(step, 5),
            "update/log_ratio": 1e-3 * noise(step, 6),
            "update/loss": -0.01 + 0.01 * noise(step, 7),
            "update/learning_rate": 5e-4 * min(1, step / 4),
            "time/rollout": 0.6,
            "time/update": 1.1,
            "time/step": 1.8,
        }
        if step % 10 == 0:
            row |= {"eval/success": success + 0.03, "eval/low": success - 0.02, "eval/high": min(1.0, success + 0.08)}
        rows.append(row)
        for prompt in range(2):
            good = [copy % 3 != step % 3 for copy in range(4)]
            for copy in range(4):
                answer = made(step * 2 + prompt, good[copy])
                rollouts.append(
                    {
                        "step": step,
                        "prompt_index": step * 2 + prompt,
                        "copy": copy,
                        "prompt": answer["prompt"],
                        "completion": answer["text"],
                        "tokens": answer["tokens"],
                        "revealed_at": answer["revealed_at"],
                        "rewards": {"solved": float(good[copy]), "format": 1.0},
                        "status": {"solved": "ok", "format": "ok"},
                        "reward": 0.1 + 0.9 * good[copy],
                        "advantage": 0.577 if good[copy] else -1.732,
                    }
                )
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "rollouts.jsonl", rollouts)
    # 18 right both times, 12 fixed, 3 broken, 7 wrong both times
    before = [True] * 18 + [False] * 12 + [True] * 3 + [False] * 7
    after = [True] * 18 + [True] * 12 + [False] * 3 + [False] * 7
    (folder / "evaluation").mkdir()
    for name, correct in (("before", before), ("after", after)):
        (folder / "evaluation" / f"{name}.json").write_text(json.dumps(evaluation(made, correct, task)))
    summary = {"task": task, "method": method, "seed": 7, "before": 21 / 40, "after": 30 / 40}
    (folder / "summary.json").write_text(json.dumps({**summary, "test_items": 40, "steps": steps, "seconds": 143.2}))
    return folder
