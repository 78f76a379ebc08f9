"""The demo, end to end: short in every run of the tests, whole among the slow ones."""

import json

import pytest

from unmask.cli import main


def run_demo(folder, *more: str) -> dict:
    assert main(["demo", "--out", str(folder), *more]) == 0
    return json.loads((folder / "summary.json").read_text())


def test_one_step_of_the_demo_leaves_a_whole_run_directory(tmp_path, capsys):
    folder = tmp_path / "demo"
    summary = run_demo(folder, "--steps", "1", "--seed", "3")
    assert summary["task"] == "sudoku" and summary["method"] == "maskgrpo" and summary["seed"] == 3
    assert summary["steps"] == 1 and summary["test_items"] >= 500
    assert 0.40 <= summary["before"] <= 0.55
    for name in ("config.yaml", "env.json", "metrics.jsonl", "rollouts.jsonl", "report.html", "model/config.json"):
        assert (folder / name).is_file()
    assert str(folder / "report.html") in capsys.readouterr().out
    after = json.loads((folder / "evaluation/after.json").read_text())
    again = tmp_path / "again.json"
    assert main(["eval", str(folder), "--task", "sudoku", "--split", "test", "--out", str(again)]) == 0
    again = json.loads(again.read_text())
    assert again["score"] == after["score"] == summary["after"]
    assert again["generations"] == after["generations"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["maskgrpo", "diffu-grpo", "unigrpo-ramp"])
def test_the_demo_learns(tmp_path, method):
    summary = run_demo(tmp_path / "demo", "--method", method)
    assert summary["after"] >= (0.75 if method == "maskgrpo" else summary["before"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_learns_nothing_from_shuffled_rewards(tmp_path):
    summary = run_demo(tmp_path / "demo", "--shuffle_rewards", "true")
    assert summary["after"] - summary["before"] < 0.05


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_for_pictures_learns_and_keeps_their_variety(tmp_path):
    summary = run_demo(tmp_path / "demo", "--task", "shapes")
    assert 0.30 <= summary["before"] <= 0.55 and summary["after"] - summary["before"] >= 0.20
    assert summary["test_items"] >= 480 and summary["diversity_after"] >= summary["diversity_before"] / 2
