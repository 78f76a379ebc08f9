"""Several processes change nothing: copies (DDP) or shards (FSDP2), full or LoRA, to 1e-9 in float64."""

import json
import re
import shutil
from pathlib import Path

import pytest

from runs import distance, launch, metrics, run, tiny_model, words
from unmask.cli import main

LORA = ("--adapter.rank", "4", "--adapter.alpha", "8")
SHARD, GRADIENTS = ("--compute.shard", "zero3"), ("--compute.shard", "zero2")
AUTO = (*SHARD, "--compute.device", "auto")
UNEVEN = (
    "--evaluation.every",
    "2",
    "--evaluation.batch",
    "2",
    "--evaluation.items",
    "7",
    "--evaluation.keep_best",
    "true",
)
UPDATES = ("--prompts", "8", "--answers", "2", "--updates_per_epoch", "2", "--objective.kl", "null")

CASES = {
    "copies": UNEVEN,
    "copies-lora": LORA,
    "copies-updates": UPDATES,
    "shards": (*UNEVEN, *SHARD),
    "shards-lora": (*LORA, *SHARD, "--compute.micro_batch", "3"),
    "gradients": (*UNEVEN, *GRADIENTS),
    "shards-updates": (*UPDATES, *SHARD),
}


def check(folder: Path, processes: int, names: list[str]) -> None:
    """Runs these cases in one process here, and in several there."""
    words(folder, "any")  # makes the files that all processes read
    plan = [[f"{name}-{processes}", *CASES[name]] for name in names]
    done = launch(processes, [str(Path(__file__).with_name("several_runs.py")), str(folder), json.dumps(plan)])
    assert done.returncode == 0, done.stderr[-3000:]
    for name in names:
        one, many = folder / f"{name}-1", folder / f"{name}-{processes}"
        if not one.exists():
            run(folder, one.name, *CASES[name])
        assert distance(one, many) < 1e-9
        for a, b in zip(metrics(one), metrics(many), strict=True):
            # copies leave out answers without advantage, but for one where a process has no other; shards score all
            scored = ("update/rows", "update/clip_fraction", "update/log_ratio", "update/nll")
            rows = scored if "updates" in name else ("update/rows",)
            assert {k: v for k, v in a.items() if k not in rows} == pytest.approx(
                {k: v for k, v in b.items() if k not in rows}, rel=1e-6, abs=1e-7
            )
        assert (one / "model/model.safetensors").stat().st_size == (many / "model/model.safetensors").stat().st_size


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


def test_two_processes_change_nothing(folder):
    check(folder, 2, list(CASES))


@pytest.mark.slow
def test_four_processes_change_nothing(folder):
    check(folder, 4, list(CASES))


def test_two_processes_evaluate_as_one(folder):
    script = folder / "evaluations.py"
    script.write_text(
        "import json, sys\nfrom unmask.cli import main\n"
        "sys.exit(max(main(words) for words in json.loads(sys.argv[1])))\n"
    )
    model = str(tiny_model(folder / "model"))
    common = ["eval", model, "--task", "sudoku", "--items", "7", "--samples", "2", "--batch", "2", "--resume"]
    common += ["--device", "cpu", "--dtype", "float64", "--precision", "float32", "--out"]
    one, two = folder / "one.json", folder / "two.json"
    assert main([*common, str(one)]) == 0
    done = launch(2, [str(script), json.dumps([[*common, str(two)]] * 2)])
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads(path.read_text()) for path in (one, two))
    assert (first["settings"].pop("processes"), second["settings"].pop("processes")) == (1, 2)
    assert first == second and len(first["generations"]) == 14
    assert done.stderr.count("two.json is finished") == 1
    assert not list(folder.glob("*.partial*"))


def test_a_run_goes_on_with_another_number_of_processes(folder):
    straight = run(folder, "straight", "--steps", "2", "--save_every", "1")
    run(folder, "moved", "--steps", "2", "--save_every", "1")
    moved = folder / "moved"
    for gone in ("model", "checkpoints/step-2"):
        shutil.rmtree(moved / gone)
    done = launch(
        2, ["-m", "unmask", "train", *words(folder, "moved", "--steps", "2", "--save_every", "1"), "--resume", *AUTO]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert distance(straight.directory.path, moved) < 1e-9


def test_when_one_process_dies_the_others_stop_with_a_message(folder):
    reward = folder / "dying.py"
    reward.write_text(
        "import os\ncalls = []\n"
        "def dying(completions, **columns):\n"
        "    calls.append(0)\n"
        "    if os.environ['RANK'] == '1' and len(calls) > 1:\n"
        "        os._exit(9)\n"
        "    return [0.1 * text.count('1') for text in completions]\n"
    )
    given = words(folder, "dead", "--save_every", "1")
    given[given.index("--reward") + 1] = f"{reward}:dying"
    done = launch(2, ["-m", "unmask", "train", *given])  # its timeout is the proof that nobody hangs
    assert done.returncode != 0
    assert re.search("rank 0: another process is gone|Signal 15", done.stderr), done.stderr[-3000:]
    assert [row["step"] for row in metrics(folder / "dead")] == [1]
    assert (folder / "dead/checkpoints/step-1/state.json").is_file()


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(folder):
    """The demo's run in float32; a long run forks by rounding, so only its success is compared."""
    out = folder / "demo"
    given = ["--config", "demo-sudoku", "--out", str(out), "--compute.precision", "float32"]
    done = launch(2, ["-m", "unmask", "train", *given], timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    success = [row["eval/success"] for row in metrics(out) if "eval/success" in row]
    assert success[-1] >= 0.75, success
