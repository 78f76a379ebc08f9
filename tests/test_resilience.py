"""What a run survives: kills, interrupts, disks, clocks, memory, and numbers that are none."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import unmask.learner
from runs import distance, metrics, run, words
from unmask import cli
from unmask.errors import RunError, UserError
from unmask.models.policy import BackbonePolicy

LONG = ("--steps", "8", "--save_every", "1", "--evaluation.every", "2", "--evaluation.keep_best", "true")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resilience")


@pytest.fixture(scope="module")
def straight(folder):
    started = time.monotonic()
    run(folder, "straight", *LONG)
    return folder / "straight", time.monotonic() - started


def forked(call: Callable[[], int | None]) -> int:
    """The id of a child that runs `call` and exits with its result: no imports to wait for, and safe to kill."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = call() or 0
    finally:
        os._exit(code)


def waited(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same(a: Path, b: Path) -> None:
    """Everything that two runs leave behind is equal to the bit, times apart."""
    assert distance(a, b) == 0
    assert metrics(a) == metrics(b)
    assert (a / "rollouts.jsonl").read_bytes() == (b / "rollouts.jsonl").read_bytes()
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()
    assert not [*b.glob(".*"), *(b / "checkpoints").glob(".*")]


def killed_at_random(folder: Path, straight: tuple[Path, float], out: str, kills: int) -> None:
    reference, seconds = straight
    delays = random.Random(out)
    for _ in range(kills):
        child = forked(lambda: run(folder, out, *LONG, resume=True) and 0)
        time.sleep(delays.uniform(0.1, 1.2) * seconds / 2)
        os.kill(child, signal.SIGKILL)
        assert waited(child) in (-signal.SIGKILL, 0)
    assert waited(forked(lambda: run(folder, out, *LONG, resume=True) and 0)) == 0
    same(reference, folder / out)


def test_three_kills_change_nothing(folder, straight):
    killed_at_random(folder, straight, "killed", 3)


@pytest.mark.slow
def test_twenty_kills_change_nothing(folder, straight):
    killed_at_random(folder, straight, "killed-often", 20)


def test_a_kill_within_any_write_changes_nothing(folder, straight):
    """The n-th rename or file of tensors kills the process: before a rename, with half a file written."""

    def dies_in_write(number: int) -> None:
        count, replace, save = 0, os.replace, unmask.learner.write_tensors

        def due() -> bool:
            nonlocal count
            count += 1
            return count == number

        def dying_replace(*paths):
            if due():
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        def dying_save(path, tensors):
            save(path, tensors)
            if due():
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace, unmask.learner.write_tensors = dying_replace, dying_save
        run(folder, "dying", *LONG, resume=True)

    deaths = 0
    for number in (1, 2, 3, 4, 6, 7, 8, 9, 11, 13, 17):
        deaths += waited(forked(lambda number=number: dies_in_write(number))) == -signal.SIGKILL
    assert deaths >= 8
    assert waited(forked(lambda: run(folder, "dying", *LONG, resume=True) and 0)) == 0
    same(straight[0], folder / "dying")


def signalled(folder: Path, out: str, *signals: int, reward: str = "") -> tuple[int, str]:
    """Exit code and messages of a run that gets these signals after its second step."""
    errors = folder / f"{out}.err"
    given = words(folder, out, *LONG)
    if reward:
        given[given.index("--reward") + 1] = reward

    def started() -> int:
        sys.stderr = errors.open("w", buffering=1)
        return cli.main(["train", *given])

    child = forked(started)
    while len(metrics(folder / out) if (folder / out / "metrics.jsonl").exists() else []) < 2:
        time.sleep(0.01)
    for number in signals:
        time.sleep(0.2)
        os.kill(child, number)
    return waited(child), errors.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_saves_and_goes_on(folder, straight, number):
    slow = folder / "slow.py"
    slow.write_text(
        "import time\ndef ones(completions, puzzle, **columns):\n    time.sleep(0.2)\n"
        '    return [(t.count("1") + 0.1 * r.count("1")) / 16 for t, r in zip(completions, puzzle)]\n'
    )
    out = f"signal-{number}"
    code, said = signalled(folder, out, number, reward=f"{slow}:ones")
    assert code == 1 and "stopping at the next safe place" in said
    step = len(metrics(folder / out))
    assert f"interrupted in step {step + 1}: the checkpoint of step {step} is saved; --resume goes on" in said
    assert (folder / out / "checkpoints" / f"step-{step}" / "state.json").is_file() and step < 8
    run(folder, out, *LONG, "--reward", f"{slow}:ones", resume=True)
    assert distance(straight[0], folder / out) == 0
    assert metrics(straight[0]) == metrics(folder / out)


def test_a_second_interrupt_stops_at_once(folder):
    asleep = folder / "asleep.py"
    asleep.write_text(
        "import time\ncalls = []\ndef nap(completions, **columns):\n    calls.append(0)\n"
        "    time.sleep(600 if len(calls) > 2 else 0)\n    return [0.1 * t.count('1') for t in completions]\n"
    )
    code, said = signalled(folder, "twice", signal.SIGINT, signal.SIGINT, reward=f"{asleep}:nap")
    assert code == 1 and said.splitlines()[-1] == "unmask: interrupted"


def test_a_full_disk_leaves_the_last_checkpoint(folder, straight, monkeypatch):
    save = unmask.learner.write_tensors

    def full(path, tensors):
        if "step-3" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, tensors)

    monkeypatch.setattr(unmask.learner, "write_tensors", full)
    with pytest.raises(RunError, match=r"step-3: the disk is full; make room, then --resume"):
        run(folder, "full", *LONG)
    monkeypatch.setattr(unmask.learner, "write_tensors", save)
    run(folder, "full", *LONG, resume=True)
    same(straight[0], folder / "full")


def test_room_is_looked_for_before_writing(folder, monkeypatch):
    usage = shutil.disk_usage

    def nearly_full(path):
        return usage(path)._replace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(RunError, match=r"the disk is nearly full: the run needs \d+ MiB, 0 MiB are free"):
        run(folder, "no-room", *LONG)
    assert not (folder / "no-room").exists()


@pytest.mark.slow
def test_a_real_small_disk(folder):
    disk = folder / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=2500k tmpfs {disk} && "
    fill = "import sys; from unmask.cli import main; from unmask.run_directory import RunDirectory; "
    fill += "RunDirectory.room = lambda *_: None; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", fill, "train", *words(folder, "disk/run", *LONG, "--keep_checkpoints", "50")]
    command += ["--steps", "200", "--evaluation.every", "0", "--evaluation.keep_best", "false"]
    script += " ".join(f"'{word}'" for word in command) + f"; code=$?; ls {disk}/run/checkpoints; exit $code"
    done = subprocess.run(["unshare", "-Urm", "bash", "-c", script], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no user namespaces here")
    assert done.returncode == 1, done.stderr
    assert "the disk is full; make room" in done.stderr.splitlines()[-1]
    assert "step-" in done.stdout


def test_a_read_only_disk_is_one_line(folder, monkeypatch):
    replace, written = os.replace, []

    def read_only(*paths):
        if len(written) == allowed:
            raise OSError(errno.EROFS, "Read-only file system")
        written.append(replace(*paths))

    monkeypatch.setattr(os, "replace", read_only)
    allowed = 0
    with pytest.raises(UserError, match=r"--out .*: Read-only file system; name a directory that can be written"):
        run(folder, "read-only")
    allowed = 2  # config.yaml and env.json; then the disk is mounted anew
    with pytest.raises(RunError, match=r"cannot write .*: Read-only file system"):
        run(folder, "read-only", resume=True)


def test_a_file_that_is_deleted_under_the_run_stops_it(folder):
    deleting = folder / "deleting.py"
    metrics_file = folder / "deleted/metrics.jsonl"
    deleting.write_text(
        "import os\ncalls = []\ndef ones(completions, **columns):\n    calls.append(0)\n"
        f"    if len(calls) == 3:\n        os.remove({str(metrics_file)!r})\n"
        "    return [0.1 * t.count('1') for t in completions]\n"
    )
    more = ("--save_every", "1", "--reward", f"{deleting}:ones")
    with pytest.raises(RunError, match=r"metrics.jsonl was deleted or changed"):
        run(folder, "deleted", *more)
    with pytest.raises(UserError, match=r"does not hold one row for each of the 2 steps"):
        run(folder, "deleted", *more, resume=True)


def test_a_damaged_checkpoint_is_named(folder):
    more = ("--save_every", "1")
    run(folder, "damaged", *more)
    shutil.rmtree(folder / "damaged/model")
    weights = folder / "damaged/checkpoints/step-3/trainable.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"step-3 cannot be read .* delete this folder"):
        run(folder, "damaged", *more, resume=True)
    shutil.rmtree(weights.parent)
    assert run(folder, "damaged", *more, resume=True).step == 3


def test_a_clock_that_is_set_back_changes_nothing(folder, straight, monkeypatch):
    now = [2e9]

    def backwards() -> float:
        now[0] -= 1000.0
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    run(folder, "clock", *LONG)
    same(straight[0], folder / "clock")


def test_a_batch_that_does_not_fit_is_halved_or_stops_the_run(folder, monkeypatch):
    run(folder, "fits")
    call = BackbonePolicy._call

    def small_memory(self, canvas, ids, *rest):
        if len(ids) > 5:
            raise torch.OutOfMemoryError("injected")
        return call(self, canvas, ids, *rest)

    monkeypatch.setattr(BackbonePolicy, "_call", small_memory)
    run(folder, "halved", "--compute.out_of_memory", "halve")
    assert distance(folder / "fits", folder / "halved") < 1e-9
    notes = [json.loads(line)["note"] for line in (folder / "halved/notes.jsonl").read_text().splitlines()]
    assert notes == [
        "step 1: out of memory with compute.rollout_batch 16; going on with 8",
        "step 1: out of memory with compute.rollout_batch 8; going on with 4",
        "step 1: out of memory with compute.micro_batch 16; going on with 8",
        "step 1: out of memory with compute.micro_batch 8; going on with 4",
    ]
    with pytest.raises(RunError, match=r"step 1: out of memory with compute.rollout_batch 16; use a smaller one"):
        run(folder, "too-large")
    with pytest.raises(RunError, match=r"step 1: out of memory with compute.micro_batch 16"):
        run(folder, "too-large-update", "--compute.rollout_batch", "4")
    run(folder, "too-large-update", "--compute.rollout_batch", "4", "--compute.micro_batch", "4", resume=True)
    assert distance(folder / "fits", folder / "too-large-update") < 1e-9


def failures(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def broken_logits(monkeypatch, phase: str, at_call: int, stays: bool = False) -> None:
    """Row 2 of one forward of the phase gives logits that are no number; `stays`: of all forwards from there on."""
    call, calls = BackbonePolicy._call, []

    def broken(self, canvas, ids, at, target, temperature):
        result = call(self, canvas, ids, at, target, temperature)
        here = "update" if torch.is_grad_enabled() else "score" if target is not None else "rollout"
        calls.append(here)
        count = calls.count(phase)
        if (here == phase and count == at_call) or (stays and count >= at_call):
            return torch.where((at[:, 0] == 2).view(-1, *[1] * (result.dim() - 1)), result * torch.nan, result)
        return result

    monkeypatch.setattr(BackbonePolicy, "_call", broken)


def test_logits_that_are_no_number_stop_the_run_or_are_left_out(folder, monkeypatch):
    broken_logits(monkeypatch, "rollout", 6)  # step 2 of 4 denoising steps each
    with pytest.raises(RunError, match=r"step 2: logits of the rollout are not finite \(rank 0: 1; see"):
        run(folder, "nan-logits", "--save_every", "1")
    (row,) = failures(folder / "nan-logits/failures/step-2-rank-0.jsonl")
    assert row["step"] == 2 and row["rank"] == 0 and row["where"] == "rollout" and len(row["prompt"]) == 16
    monkeypatch.undo()
    broken_logits(monkeypatch, "rollout", 2)  # the resumed run begins with step 2
    run(folder, "nan-logits", "--save_every", "1", "--guard.nonfinite", "skip", resume=True)
    assert [row["rollout/dropped_share"] for row in metrics(folder / "nan-logits")] == [0, 1 / 16, 0]


def test_an_update_that_is_no_number_stops_the_run_or_is_skipped(folder, monkeypatch):
    broken_logits(monkeypatch, "update", 3, stays=True)  # one view in each of 2 epochs: step 2
    with pytest.raises(RunError, match=r"step 2: loss nan or gradient .norm nan. is not finite"):
        run(folder, "nan-loss")
    (row,) = failures(folder / "nan-loss/failures/step-2-rank-0.jsonl")
    assert row["where"] == "update" and row["step"] == 2 and {"completion", "reward", "advantage"} <= row.keys()
    monkeypatch.undo()
    broken_logits(monkeypatch, "update", 3)
    run(folder, "nan-skipped", "--guard.nonfinite", "skip")
    assert [row.get("update/skipped") for row in metrics(folder / "nan-skipped")] == [None, 0.5, None]


def test_what_looks_wrong_is_reported(folder):
    constant = folder / "constant.py"
    constant.write_text("def one(completions, **columns):\n    return [1.0] * len(completions)\n")
    run(folder, "flat", "--reward", f"{constant}:one", "--guard.report_constant_reward", "2", "--save_every", "1")
    notes = failures(folder / "flat/notes.jsonl")
    assert [row["note"] for row in notes] == [
        "no group had two different rewards for 2 steps: there is nothing to learn from"
    ]
    run(folder, "steep", "--guard.report_grad_norm", "1e-6", "--steps", "1")
    assert "is clipped to 1" in failures(folder / "steep/notes.jsonl")[0]["note"]
    with pytest.raises(RunError, match=r"step \d: KL .* exceeds guard.max_kl 1e-05"):
        run(folder, "far", "--guard.max_kl", "1e-5")
