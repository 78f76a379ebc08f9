"""The built-in model that writes programs, and reinforcement learning of it with the sandbox as the reward."""

import json
from pathlib import Path

import pytest

import unmask
from runs import metrics, sandbox_works
from unmask.cli import main
from unmask.rewards.code import Expression
from unmask.rewards.sandbox import CodeExecutor, CodeResult
from unmask.tasks import Programs

ASSET = Path(unmask.__file__).parent / "assets/programs"


needs_sandbox = pytest.mark.skipif(not sandbox_works(), reason="no sandbox can start on this machine")


class Counted(CodeExecutor):
    """Passes the first test of every job, and counts the jobs."""

    def __init__(self):
        self.jobs = []

    def check(self):
        pass

    def run(self, jobs):
        self.jobs += jobs
        return [CodeResult(("passed", *["failed"] * (len(job.tests) - 1))) for job in jobs]


def test_of_equal_programs_with_equal_tests_one_is_run():
    first, second = {"tests": ["assert f(1, 2) == 3"]}, {"tests": ["assert f(1, 2) == 3", "assert f(0, 0) == 1"]}
    sandbox = Counted()
    written = ["x+y", "", "x+y", "x + y", "x+y", "x+y"]
    rows = [first, first, first, first, second, second]
    scores = Expression(sandbox=sandbox)(written, rows)
    assert [(score.value, score.status) for score in scores] == [
        (1.0, "ok"),
        (0.0, "invalid"),
        (1.0, "ok"),
        (1.0, "ok"),
        (0.5, "ok"),
        (0.5, "ok"),
    ]
    assert [(job.code.split("return ")[1], len(job.tests)) for job in sandbox.jobs] == [
        ("(x+y)", 1),
        ("(x + y)", 1),
        ("(x+y)", 2),
    ]


def evaluated(folder: Path, source: str, *more: str) -> dict:
    out = folder / f"evaluation-{Path(source).name}.json"
    assert main(["eval", source, "--task", "programs", "--split", "validation", "--out", str(out), *more]) == 0
    return json.loads(out.read_text())


@needs_sandbox
def test_the_built_in_model_is_small_and_writes_programs_right_and_careless(tmp_path):
    assert sum(file.stat().st_size for file in ASSET.rglob("*")) < 1_000_000
    result = evaluated(tmp_path, "builtin:programs", "--items", "60")
    assert 0.05 <= result["score"] <= 0.4
    written = [item["generation"] for item in result["generations"]]
    assert all(set(text.split("<|")[0]) <= set(Programs.alphabet or "") for text in written)


@needs_sandbox
def test_two_steps_with_the_sandbox_as_reward(tmp_path):
    out = tmp_path / "run"
    words = ["--steps", "2", "--prompts", "4", "--answers", "4", "--evaluation.every", "0", "--seed", "3"]
    assert main(["train", "--config", "demo-programs", "--out", str(out), *words]) == 0
    assert [row["step"] for row in metrics(out)] == [1, 2]
    for row in metrics(out):
        assert 0 <= row["reward/expression"] == row["rollout/success"] <= 1
        assert row["reward/expression_infra_error"] == 0
    assert (out / "report.html").is_file()
    assert unmask.load(out).backbone.config.dim == unmask.load("builtin:programs").backbone.config.dim


@needs_sandbox
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_reinforcement_learning_with_the_sandbox_learns(tmp_path):
    before = evaluated(tmp_path, "builtin:programs")["score"]
    assert main(["train", "--config", "demo-programs", "--out", str(tmp_path / "run"), "--seed", "10"]) == 0
    assert evaluated(tmp_path, str(tmp_path / "run"))["score"] >= before + 0.1
