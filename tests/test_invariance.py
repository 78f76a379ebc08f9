"""What must not change a run: micro-batches, a stop in between. A few updates in float64, 1e-9."""

import json
import re
import subprocess

import pytest
import torch

from runs import distance, metrics, run, weights
from unmask.errors import RunError, UserError
from unmask.report import write_report
from unmask.rewards.base import Score
from unmask.rewards.puzzles import SudokuSolved
from unmask.types import View
from unmask.views import score


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invariance")
    run(folder, "straight")
    return folder


def test_training_moves_the_policy_and_is_repeatable(straight):
    run(straight, "again")
    assert distance(straight / "straight", straight / "again") == 0
    assert metrics(straight / "straight") == metrics(straight / "again")
    run(straight, "other", "--seed", "1")
    assert distance(straight / "straight", straight / "other") > 1e-3


@pytest.mark.parametrize("size", ["1", "3", "4", "16"])
def test_micro_batches_change_nothing(straight, size):
    out = f"micro{size}"
    run(straight, out, "--compute.micro_batch", size, "--compute.rollout_batch", size)
    assert distance(straight / "straight", straight / out) < 1e-9
    for a, b in zip(metrics(straight / "straight"), metrics(straight / out), strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-7)  # rewards and metrics are float32


def test_a_resumed_run_equals_a_straight_one(straight):
    more = ("--save_every", "1", "--evaluation.every", "1", "--evaluation.keep_best", "true")
    run(straight, "whole", *more)
    run(straight, "resumed", *more)
    stopped = straight / "resumed"
    # as if it had been killed in step 3: the final model is not there, the checkpoint of step 2 is
    for name in ("model", "checkpoints/step-3"):
        subprocess.run(["rm", "-r", str(stopped / name)], check=True)
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "cut o')
    run(straight, "resumed", *more, resume=True)
    assert distance(straight / "whole", stopped) == 0
    assert metrics(straight / "whole") == metrics(stopped)
    assert (straight / "whole/rollouts.jsonl").read_text() == (stopped / "rollouts.jsonl").read_text()
    assert (straight / "whole/model/model.safetensors").read_bytes() == (
        stopped / "model/model.safetensors"
    ).read_bytes()


def test_resume_starts_finishes_and_refuses_other_settings(straight):
    run(straight, "fresh", resume=True)
    assert distance(straight / "straight", straight / "fresh") == 0
    assert run(straight, "fresh", resume=True).finished
    with pytest.raises(UserError, match="settings differ"):
        run(straight, "fresh", "--seed", "3", resume=True)
    with pytest.raises(UserError, match="holds a run already"):
        run(straight, "fresh")


def test_rows_without_advantage_skip_the_forward_without_changing_the_update(straight, monkeypatch):
    coin = straight / "coin.py"
    coin.write_text("def coin(completions, **columns):\n    return [float(len(c) % 3 == 0) for c in completions]\n")
    more = ("--objective.kl", "null", "--prompts", "4", "--answers", "2", "--reward", f"{coin}:coin")
    run(straight, "skip", *more)
    import unmask.objectives.surrogate as surrogate

    monkeypatch.setattr(surrogate.TokenSurrogate, "needs_reference", True)  # scores all rows, adds no term
    run(straight, "all", *more)
    assert any(row["update/rows"] < 8 for row in metrics(straight / "skip"))
    assert all(row["update/rows"] == 8 for row in metrics(straight / "all"))
    assert distance(straight / "skip", straight / "all") < 1e-12


def test_the_first_log_ratio_is_zero_and_stays_tiny_across_splits(straight):
    import unmask

    model = unmask.load(straight / "model", dtype="float32")
    policy = model.policy()
    puzzles = ["3421210003121230", "0000341221434321"] * 8
    canvas = model.modality.encode(puzzles, 16)
    x = torch.randint(0, 5, (16, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.rand(16, 16, generator=torch.Generator().manual_seed(1)) < 0.7
    view = View(mask, mask.float())
    with torch.no_grad():
        old = score(policy, canvas, x, view)
    new = score(policy, canvas, x, view)
    assert float((new.detach() - old).abs().max()) == 0
    for size in (1, 4, 5):
        parts = torch.cat([score(policy, canvas[i], x[i], view[i]) for i in torch.arange(16).split(size)])
        assert float((parts - old).abs().max()) < 1e-5


def test_lora_trains_its_adapters_only_and_saves_a_merged_model(straight):
    import unmask

    adapter = ("--adapter.rank", "4", "--adapter.alpha", "8")
    finished = run(straight, "lora", *adapter, "--save_every", "2")
    assert all(".lora_" in name for name in weights(straight / "lora"))
    model = unmask.load(straight / "lora" / "model", dtype="float64")
    ids = torch.arange(8)[None]
    trained = finished.learner.module(ids)
    assert float((model.backbone(ids) - trained).abs().max()) < 1e-5
    with finished.learner.module.disable_adapter():
        start = finished.learner.module(ids)
    assert float((start - trained).abs().max()) > 1e-4
    first = [row["update/kl"] for row in metrics(straight / "lora")]
    assert first[0] >= 0 and first[-1] > first[0]  # the reference is the start, not the last step


def test_equal_rewards_give_no_gradient(straight):
    constant = straight / "constant.py"
    constant.write_text("def one(completions, **columns):\n    return [1.0] * len(completions)\n")
    run(straight, "constant", "--objective.kl", "null", "--reward", f"{constant}:one")
    assert all(row["update/grad_norm"] == 0 for row in metrics(straight / "constant"))
    assert all(row["rollout/zero_std_share"] == 1 for row in metrics(straight / "constant"))


def test_a_group_whose_reward_failed_is_left_out(straight):
    failing = straight / "failing.py"
    failing.write_text(
        "def half(completions, prompts, **columns):\n"
        "    return [float('nan') if i < len(completions) // 2 else 0.1 * i for i in range(len(completions))]\n"
    )
    with pytest.warns(UserWarning):
        run(straight, "failing", "--reward", f"{failing}:half", "--steps", "1", "--max_dropped_share", "0.5")
    (row,) = metrics(straight / "failing")
    assert row["rollout/dropped_share"] == 0.5
    assert row["reward/half_infra_error"] == 0.5
    assert row["update/grad_norm"] > 0
    with pytest.warns(UserWarning), pytest.raises(RunError, match="step 1: rewards failed for 50%"):
        run(straight, "stopped", "--reward", f"{failing}:half", "--steps", "1")


def test_a_reward_that_has_nothing_to_say_is_no_failure(straight):
    silent = straight / "silent.py"
    silent.write_text(
        "def every_second(completions, **columns):\n"
        "    return [None if i % 2 else 0.1 * i for i in range(len(completions))]\n"
    )
    run(straight, "silent", "--reward", f"{silent}:every_second", "--steps", "1")
    (row,) = metrics(straight / "silent")
    assert row["rollout/dropped_share"] == 0.5 and row["reward/every_second_infra_error"] == 0
    assert row["reward/every_second_not_applicable"] == 0.5
    page = write_report(straight / "silent").read_text()
    assert re.search(r"<th>every_second</th>.*?>50.0 %<.*?>0.0 %<.*?>50.0 %<.*?>0.0 %<", page)
    assert "every_second_not_applicable" not in page
    assert "What rewards said" not in write_report(straight / "straight").read_text()


def test_an_evaluation_that_nobody_could_judge_does_not_count(straight, monkeypatch):
    monkeypatch.setattr(SudokuSolved, "judge", lambda *_: Score.infra_error("the service is down"))
    more = ("--evaluation.every", "1", "--evaluation.keep_best", "true", "--evaluation.stop_at", "0")
    assert run(straight, "unjudged", *more, "--steps", "2").step == 2
    notes = [json.loads(line) for line in (straight / "unjudged/notes.jsonl").read_text().splitlines()]
    assert [note["step"] for note in notes] == [1, 2]
    says = "no answer of the evaluation could be judged (the service is down): it does not count"
    assert {note["note"] for note in notes} == {says}
    assert "eval/success" not in metrics(straight / "unjudged")[0]


def test_an_early_stop_is_remembered_by_a_resumed_run(straight):
    more = ("--evaluation.every", "1", "--evaluation.stop_at", "0")
    run(straight, "early", *more)
    subprocess.run(["rm", "-r", str(straight / "early" / "model")], check=True)
    assert run(straight, "early", *more, resume=True).step == 1
    assert len(metrics(straight / "early")) == 1
