"""Stored generations: judged again as ours and as d1 reads them, and evaluations that go on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import unmask
from runs import tiny_model
from unmask.cli import main
from unmask.errors import UserError
from unmask.evaluation import rescore
from unmask.rewards.d1 import D1Countdown, D1Number, D1Sudoku, last_box, python_value
from unmask.samplers import TopProb
from unmask.stored import Partial, read_generations
from unmask.tasks import GSM8K, Countdown, Sudoku

PUZZLE, SOLUTION = "0021210003121230", "3421214343121234"


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"\boxed{12}", 12.0, True),
        (r"\boxed{11} no, \boxed{12}", 12.0, False),  # the first one counts
        (r"\boxed{...} \boxed{ } \boxed{12}", 12.0, True),
        (r"\boxed{about 12 or 13}", 12.0, True),  # the first number of a box
        (r"\boxed{1,000}", 1000.0, False),
        (r"\boxed{\text{12}}", 12.0, True),
        ("\\boxed{1\n2} <answer>12</answer>", 12.0, True),  # a box is on one line
        ("<answer>11, so 12</answer>", 12.0, True),  # the last number of an answer
        ("<answer>12", 12.0, False),
        (r"<|eot_id|>\boxed{12}", 12.0, True),  # text behind the end is read too
        (r"\boxed{nan}", float("nan"), False),
        (r"\boxed{12}", "so 12\n#### 12", True),
        (r"\boxed{-12}", "#### -12", False),  # d1 cannot read a negative gold
        (r"\boxed{-12}", -12.0, True),
        ("12", 12.0, False),
    ],
)
def test_numbers_are_read_as_d1_reads_them(text, gold, right):
    assert D1Number().judge(text, {"answer": gold}).value == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"\boxed{5*7}", True),
        (r"\boxed{7}\boxed{5*7}", True),  # the last one counts
        (r"\boxed{5 \times 7}", True),
        (r"\boxed{5 \times 7 = 35}", True),
        (r"\boxed{5 \times 7 = 36}", True),  # what stands behind the sign is not read
        (r"\boxed{5*7=x}", False),
        (r"\boxed{5+7}", False),
        (r"\boxed{5*7*1}", False),
        (r"\boxed{--5*(+7)}", True),  # Python's arithmetic
        (r"\boxed{5(7)}", False),
        (r"\boxed 5*7$ right", True),
        ("5*7", True),  # a text without a box is taken whole
        ("so 5*7", False),
        ("so 5*7=35", True),
        (r"\boxed{ <answer>5*7</answer>", True),
        (r"\boxed{5**77777777}", False),
        (r"\boxed{" + "(" * 300 + "5*7" + ")" * 300 + "}", False),
    ],
)
def test_expressions_are_read_as_d1_reads_them(text, right):
    assert D1Countdown().judge(text, {"numbers": [7, 5], "target": 35}).value == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (f"<answer>\n{SOLUTION}\n</answer>", 8),
        (f"<answer>``` {SOLUTION}```</answer>", 8),
        ("<answer>3421 2143\n4312 1234</answer>", 8),
        (f"<answer>{SOLUTION}<|eot_id|>", 8),
        (f"</answer> {SOLUTION}", 8),
        (f"it is {SOLUTION}.", 8),
        ("<answer>34212143</answer>", 5),  # short ones are filled up
        (f"<answer>{SOLUTION}1111</answer>", 8),  # long ones are cut
        (f"<answer>no</answer> {SOLUTION}", 0),  # the first pattern that finds anything counts
        ("", 0),
    ],
)
def test_grids_are_read_as_d1_reads_them(text, right):
    puzzle = "0021200003121200"
    assert puzzle.count("0") == 8
    details = D1Sudoku().judge(text, {"puzzle": puzzle, "answer": SOLUTION}).details
    assert (details["right"], details["parts"]) == (right, 8)


def test_boxes_and_values_of_odd_expressions():
    assert last_box(r"\fbox{3}") == r"\fbox{3}"
    with pytest.raises(ValueError, match="not closed"):
        last_box(r"\boxed{3")
    assert python_value("2**-1") == 0.5 and python_value("7//2") == 3 and python_value("1.5+1.") == 2.5
    for text in ("1/0", "9**9**9", "07", "1 2", "1(2)", "()", "+", "1\n2", "a", "1" * 2000, "...", "2-..."):
        assert python_value(text) is None
    assert D1Countdown().judge(r"\boxed{...}", {"numbers": [], "target": 3}).value == 0


def test_a_countdown_without_numbers_is_refused():
    with pytest.raises(ValueError, match="names no numbers and target"):
        Countdown().stored_row("?", [[], 3])
    assert Countdown().stored_row("?", [[1, 2], 3]) == {"numbers": [1, 2], "target": 3}


def rows(file: Path, *items: dict) -> Path:
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return file


def test_rows_of_other_tasks_are_left_out_and_the_result_says_how_it_was_judged(tmp_path, capsys):
    item = {"task": "gsm8k", "question": "?", "ground_truth": 12.0}
    file = rows(
        tmp_path / "rows.jsonl",
        {**item, "generation": r"\boxed{12}"},
        {**item, "generation": r"\boxed{11} \boxed{12}", "correct": False},
        {**item, "generation": "no"},
        {"task": "countdown", "question": "?", "ground_truth": [[5, 7], 35], "generation": "5*7"},
        {"task": "math500"},
    )
    for parser, right in (("unmask", 2), ("d1", 1)):
        out = tmp_path / f"{parser}.json"
        assert main(["eval", "--task", "gsm8k", "--generations", str(file), "--parser", parser, "--out", str(out)]) == 0
        result = json.loads(out.read_text())
        assert result["score"] == pytest.approx(right / 3) and result["items"] == 3 and result["parser"] == parser
        assert result["protocol"] == "unknown" and result["interval"][0] < right / 3 < result["interval"][1]
        assert [item["correct"] for item in result["generations"]].count(True) == right
        assert list(result["sources"]) == ["rows.jsonl"]
    assert main(["eval", "--task", "countdown", "--generations", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 1.0  # our own task takes a bare expression too


def test_the_d1_score_of_sudoku_is_the_share_of_cells(tmp_path):
    item = {"task": "sudoku", "question": f"Solve: {PUZZLE}\n", "ground_truth": SOLUTION}
    blanks = PUZZLE.count("0")
    easy = {**item, "question": f"Solve: {SOLUTION[:15]}0\n", "generation": f"<answer>{SOLUTION}</answer>"}
    stored = read_generations(rows(tmp_path / "rows.jsonl", {**item, "generation": "<answer>34</answer>"}, easy))
    result = rescore(stored, Sudoku(), "d1")
    assert result["score"] == pytest.approx((2 + 1) / (blanks + 1))
    assert [one["correct"] for one in result["generations"]] == [False, True]
    assert rescore(stored, Sudoku())["score"] == 0.5


@pytest.mark.parametrize("samples", [1, 3])
def test_scoring_an_evaluation_again_gives_its_score(samples, tmp_path):
    out, again = tmp_path / "first.json", tmp_path / "again.json"
    command = ["eval", "builtin:sudoku", "--task", "sudoku", "--items", "12", "--samples", str(samples)]
    assert main([*command, "--out", str(out)]) == 0
    assert main(["eval", "--task", "sudoku", "--generations", str(out), "--out", str(again)]) == 0
    first, second = json.loads(out.read_text()), json.loads(again.read_text())
    same = ("score", "interval", "pass_at", "items", "protocol", "parser", "generations", "unmask", "commit")
    for name in (*same, "model", "split", "sampler", "seed", "precision"):
        assert first[name] == second[name]
    assert 0 < first["score"] < 1
    assert second["generated"] == {name: first[name] for name in ("settings", "unmask", "commit")}
    stored = read_generations(again)
    assert rescore(stored, Sudoku())["generated"] == second["generated"] and "settings" not in second


def test_a_protocol_that_is_named_holds_against_the_files(tmp_path, capsys):
    row = {"task": "countdown", "question": "5,7=35:", "ground_truth": [[5, 7], 35], "generation": "5*7"}
    file, lines = tmp_path / "result.json", rows(tmp_path / "rows.jsonl", row)
    for told, words, score, protocol in (
        ("unmask", [], 1.0, "unmask"),
        ("unmask", ["--task.protocol", "chat"], 0.0, "chat"),
        ("unmask", ["--protocol", "chat"], 0.0, "chat"),
        ("chat", [], 0.0, "chat"),
        ("chat", ["--protocol", "unmask"], 1.0, "unmask"),
        (None, ["--protocol", "chat"], 0.0, "chat"),
        (None, [], 1.0, "unknown"),
    ):
        file.write_text(json.dumps({"protocol": told, "generations": [row]}))
        source = lines if told is None else file
        assert main(["eval", "--task", "countdown", "--generations", str(source), *words]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["score"], result["protocol"]) == (score, protocol)


def test_rows_of_our_own_countdown_are_read_from_the_question():
    row = Countdown().rows("test")[0]
    assert Countdown().stored_row(row["prompt"], row["answer"]) == {"numbers": row["numbers"], "target": row["target"]}
    told = "Numbers: [4, 7, 7]\nTarget: 35"
    assert Countdown().stored_row(told, None) == Countdown().stored_row("?", [[4, 7, 7], 35])
    with pytest.raises(UserError, match="has unmask, d1"):
        GSM8K().metric("d2")


def evaluated(model, path: Path | None, resume: bool = False) -> tuple[dict, int]:
    """The result, and how many answers were drawn for it."""
    drawn = []
    task, encode = Sudoku(test_items=10), model.modality.encode
    model.modality.encode = lambda prompts, slots: drawn.extend(prompts) or encode(prompts, slots)
    partial = None if path is None else Partial(path, {"seed": 3}, resume)
    sampler = TopProb(steps=4, temperature=0.8)
    result = unmask.evaluate(model, task, sampler=sampler, samples=2, seed=3, batch=6, partial=partial)
    model.modality.encode = encode
    return result, len(drawn)


def test_an_evaluation_that_was_cut_anywhere_goes_on_to_the_same_result(tmp_path):
    model, path = unmask.load(tiny_model(tmp_path / "model")), tmp_path / "partial.jsonl"
    whole, drawn = evaluated(model, None)
    assert drawn == 20
    assert evaluated(model, path) == (whole, 20)
    content, left = path.read_bytes(), set()
    for cut in range(0, len(content) + 1, len(content) // 23):
        path.write_bytes(content[:cut])
        result, drawn = evaluated(model, path, resume=True)
        assert result == whole
        assert path.read_bytes() == content
        left.add(drawn)
    assert left == {20, 14, 8, 2, 0} - ({0} - left)
    with pytest.raises(UserError, match=r"settings differ .*\(seed\)"):
        Partial(path, {"seed": 4}, resume=True)
    path.write_text("[]\n")
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        Partial(path, {"seed": 3}, resume=True)


def test_a_killed_evaluation_goes_on_and_a_finished_one_stays(tmp_path, capsys):
    out, straight = tmp_path / "out.json", tmp_path / "straight.json"
    partial = tmp_path / "out.json.partial.jsonl"
    command = ["eval", "builtin:sudoku", "--task", "sudoku", "--items", "80", "--batch", "2", "--resume"]
    child = subprocess.Popen([sys.executable, "-m", "unmask", *command, "--out", str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists() and 2 < partial.read_bytes().count(b"\n") <= 40
    assert main([*command[:-1], "--out", str(straight)]) == 0
    assert main([*command, "--seed", "9", "--out", str(out)]) == 2
    assert "settings differ" in capsys.readouterr().err and not out.exists()
    assert main([*command, "--out", str(out)]) == 0
    assert out.read_bytes() == straight.read_bytes() and not partial.exists()
    before = out.stat().st_mtime_ns
    capsys.readouterr()
    assert main([*command, "--out", str(out)]) == 0
    assert "is finished" in capsys.readouterr().err and out.stat().st_mtime_ns == before
    assert main([*command, "--samples", "2", "--out", str(out)]) == 2
    assert "settings differ" in capsys.readouterr().err and out.stat().st_mtime_ns == before


@pytest.mark.data
@pytest.mark.skipif("UNMASK_DATA" not in os.environ, reason="UNMASK_DATA does not name the benchmark files")
def test_real_generations_are_scored_as_by_the_evaluation_of_d1():
    file = Path(os.environ["UNMASK_DATA"]) / "llada_generations" / "d1_llada8b_instruct_256.jsonl"
    stored = read_generations(file)
    # Counted with d1's own evaluation script on the same rows.
    for task, right, of in ((GSM8K(), 157, 200), (Countdown(), 41, 200), (Sudoku(), 106, 1600)):
        assert rescore(stored, task, "d1")["score"] == pytest.approx(right / of, abs=1e-12)
    for task, right in ((GSM8K(), 158), (Countdown(), 40), (Sudoku(), 0)):
        assert rescore(stored, task)["score"] == right / 200
