"""Countdown and Sudoku from files and from the generators, bare and in chats: each layout is whole with each source."""

import functools
import hashlib
import itertools
import json
import os
import sys
import types
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.cli import main
from unmask.errors import UserError
from unmask.evaluation import rescore
from unmask.rewards.puzzles import evaluate_expression
from unmask.stored import read_generations
from unmask.tasks import GSM8K, Countdown, Sudoku
from unmask.tasks.countdown import MOST_NUMBERS, careless_expression, solve, steps
from unmask.tasks.hub import Source
from unmask.tasks.puzzles import Puzzle
from unmask.tasks.sudoku import all_grids, solutions

DATA = Path(__file__).parent / "data"
FILES = {"countdown": DATA / "countdown.jsonl", "sudoku": DATA / "sudoku.csv"}
KINDS = {"countdown": Countdown, "sudoku": Sudoku}
SPLITS = ("train", "validation", "test")

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
chats = pytest.mark.parametrize("protocol", ["chat", "d1"])
sources = pytest.mark.parametrize("source", ["generator", "file"])
needs_data = pytest.mark.skipif("UNMASK_DATA" not in os.environ, reason="UNMASK_DATA does not name the benchmark files")


def task_of(kind: type[Puzzle], source: str, protocol: str = "unmask", **options) -> Puzzle:
    data = str(FILES[kind.name]) if source == "file" else ""
    return kind(data=data, protocol=protocol, validation_share=0.3, **options)


def values(reward, texts, rows) -> set[float]:
    return {score.value for score in reward(texts, rows)}


# -- layouts


@kinds
@chats
@sources
def test_demonstrations_in_a_chat_win_every_reward_and_every_parser(kind, protocol, source):
    task = task_of(kind, source, protocol)
    rows = [row for split in SPLITS for row in task.rows(split)[:200] if "completion" in row]
    assert len(rows) >= (600 if source == "generator" else 10)
    texts = [row["completion"] for row in rows]
    assert values(task.success, texts, rows) == values(task.metric("d1"), texts, rows) == {1.0}
    names = [weighted.reward.name for weighted in task.rewards()]
    assert names == [task.name, "format"]
    for weighted in task.rewards():
        assert values(weighted.reward, texts, rows) == {1.0}


@kinds
@chats
@sources
def test_a_chat_asks_with_instructions_and_begins_as_its_protocol_says(kind, protocol, source):
    task = task_of(kind, source, protocol)
    row = task.rows("test")[0]
    first, *begun = row["prompt"]
    assert first["role"] == "user" and first["content"].startswith(task.instructions)
    assert begun == ([{"role": "assistant", "content": "<reasoning>"}] if protocol == "d1" else [])
    assert row["completion"].startswith("<reasoning>") == (protocol == "chat")
    told = "\n".join(turn["content"] for turn in row["prompt"])
    columns = ("numbers", "target") if kind is Countdown else ("puzzle", "answer")
    assert task.stored_row(told, row["answer"]) == {name: row[name] for name in columns}


@kinds
@chats
def test_generated_rows_differ_between_layouts_in_prompt_and_completion_only(kind, protocol):
    for options in ({}, {"careless_at_fewest": 1.0, "careless_at_most": 1.0}):
        bare, chat = kind(**options), kind(**options, protocol=protocol)
        for split in SPLITS:
            for one, other in zip(bare.rows(split)[:100], chat.rows(split)[:100], strict=True):
                assert {**other, "prompt": one["prompt"], "completion": one["completion"]} == one
                assert one["completion"] in other["completion"]
    wrong = chat.rows("train")[:100]
    assert values(chat.success, [row["completion"] for row in wrong], wrong) <= {0.0, 0.1, 1.0}
    assert sum(score.value < 1 for score in chat.success([row["completion"] for row in wrong], wrong)) > 60


def test_a_bare_expression_is_an_answer_in_the_bare_layout_only():
    row = {"numbers": [4, 7, 7], "target": 35}
    assert [Countdown(protocol=name).success(["7*4+7"], [row])[0].status for name in ("unmask", "chat", "d1")] == [
        *("ok", "invalid", "invalid")
    ]
    assert Countdown(protocol="chat", partial=0.3).rewards()[0].reward.judge(r"\boxed{7+4+7}", row).value == 0.3
    assert Sudoku(protocol="d1", soft=True).rewards()[0].reward == replace(Sudoku().success, soft=True)


@kinds
def test_a_chat_has_its_own_length_unless_another_is_set(kind):
    usual = kind().answer_length
    assert usual < 20 and [kind(protocol=name).answer_length for name in ("chat", "d1")] == [256, 256]
    assert replace(kind(), protocol="d1").answer_length == 256
    assert kind(protocol="chat", answer_length=64).answer_length == 64
    assert kind(answer_length=64).answer_length == 64
    with pytest.raises(UserError, match=f"task {kind.name} has no protocol 'maskgrpo'; it has unmask, chat, d1"):
        kind(protocol="maskgrpo")
    with pytest.raises(UserError, match="validation_share"):
        kind(validation_share=1.0)


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("(7*4)+7", ["7*4 = 28", "28+7 = 35"]),
        ("3*(4-9)", ["4-9 = -5", "3*(-5) = -15"]),
        ("5-3-2*4", ["5-3 = 2", "2*4 = 8", "2-8 = -6"]),
        ("(30-8)/(9+2)", ["30-8 = 22", "9+2 = 11", "22/11 = 2"]),
    ],
)
def test_the_steps_of_an_expression(expression, lines):
    assert steps(expression) == lines


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20 - 1))
def test_the_last_step_has_the_value_of_the_expression_careless_or_not(i):
    answer = Countdown().rows("train")[i]["answer"]
    for expression in (answer, careless_expression(answer)):
        *_, last = steps(expression)
        assert len(steps(expression)) == 2
        assert int(last.rpartition("= ")[2]) == evaluate_expression(expression)[0]


# -- the solver


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=4), st.integers(-5, 60))
def test_a_solution_uses_each_number_once_and_reaches_the_target(numbers, target):
    solution = solve(numbers, target)
    if solution is not None:
        value, used = evaluate_expression(solution)
        assert value == target and sorted(used) == sorted(numbers)


def values_of(numbers) -> set[Fraction]:
    """Every value that expressions over all of the numbers have, also over fractions and below zero."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    found = set()
    for size in range(1, len(numbers)):
        for part in itertools.combinations(range(len(numbers)), size):
            others = [numbers[i] for i in range(len(numbers)) if i not in part]
            for a, b in itertools.product(values_of([numbers[i] for i in part]), values_of(others)):
                found |= {a + b, a - b, a * b} | ({a / b} if b else set())
    return found


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=3))
def test_what_has_no_solution_needs_fractions_or_cannot_be_reached(numbers):
    reachable = {int(value) for value in values_of(numbers) if value == int(value) >= 0}
    solved = {target for target in range(1, 200) if solve(numbers, target) is not None}
    assert solved <= reachable
    if len(numbers) == 2:
        assert solved == reachable & set(range(1, 200))
    assert solve([3, 3, 8, 8], 24) is None  # only 8 / (3 - 8 / 3)
    assert solve([1, 2, 3, 4, 5], 15) is None  # too many numbers


# -- rows of files


def test_rows_of_a_file_keep_their_columns_and_get_what_rewards_read():
    rows = task_of(Countdown, "file").rows("test")
    assert {**rows[0], "answer": "", "completion": ""} == {
        **{"input": "5,9,9", "output": "90", "source": "generated", "numbers": [5, 9, 9], "target": 90},
        **{"cluster": "5,9,9", "id": "countdown-test-1", "prompt": "5,9,9=90:", "answer": "", "completion": ""},
    }
    assert rows[3]["numbers"] == [2, 9, 30, 47] and rows[3]["completion"] == rows[3]["answer"]
    assert "completion" not in rows[5] and "answer" not in rows[5] and rows[5]["prompt"] == "1,2,3,4,5=15:"
    row = task_of(Sudoku, "file").rows("test")[0]
    assert row["Puzzle"] == row["puzzle"] == row["prompt"] == "0043400020303412"  # zeros in front are kept
    assert row["Solution"] == row["answer"] == row["completion"] == row["cluster"] and row["source"] == "generated"
    assert row["id"] == "sudoku-test-2" and row["blanks"] == 7


@kinds
def test_one_file_serves_all_splits_and_clusters_stay_together(kind, tmp_path):
    task = task_of(kind, "file")
    train, validation, test = (task.rows(split) for split in SPLITS)
    assert len(train) + len(validation) == len(test) == 6 and len(validation) >= 1
    assert {row["cluster"] for row in train}.isdisjoint(row["cluster"] for row in validation)
    sha = hashlib.sha256(FILES[kind.name].read_bytes()).hexdigest()
    assert task.sources("test") == {FILES[kind.name].name: sha} and kind().sources("test") == {}
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({name: value for name, value in test[0].items() if name != "cluster"}))
    with pytest.raises(UserError, match=r"no rows for validation; raise validation_share"):
        kind(data=str(one)).rows("validation")
    with pytest.raises(UserError, match="no split 'dev'"):
        task.rows("dev")


def test_numbers_in_another_order_and_puzzles_of_one_grid_are_held_out_together(tmp_path):
    orders = [",".join(map(str, order)) for order in itertools.permutations((3, 5, 8))]
    lines = [{"input": text, "output": str(n)} for n, text in enumerate([*orders, "1,2", "4,4", "9,7", "6,6"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for share in (0.2, 0.4, 0.6, 0.8):
        task = Countdown(data=str(tmp_path / "rows.jsonl"), validation_share=share)
        sides = [{row["cluster"] for row in task.rows(split)} for split in ("train", "validation")]
        assert all(sides) and not sides[0] & sides[1]
    grids = [f"{grid[:n]}{'0' * (16 - n)},{grid}" for grid in all_grids()[::60] for n in (4, 8, 12)]
    (tmp_path / "rows.csv").write_text("\n".join(["puzzle,solution", *grids]))
    task = Sudoku(data=str(tmp_path / "rows.csv"), validation_share=0.4)
    sides = [{row["answer"] for row in task.rows(split)} for split in ("train", "validation")]
    assert len(sides[0]) + len(sides[1]) == 5 and not sides[0] & sides[1]


@kinds
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_all_kinds_of_files_and_folders_of_them_have_the_same_rows(kind, suffix, tmp_path):
    rows = [
        {"nums": "[3, 5]" if suffix in (".csv", ".tsv") else [3, 5], "target": 15} if kind is Countdown else
        {"puzzle": f"0{grid[1:]}", "solution": grid}
        for grid in all_grids()[:2]
    ]  # fmt: skip
    lines = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows, indent=1),
        ".csv": "\n".join([",".join(rows[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in rows)]),
        ".tsv": "\n".join(["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]),
    }
    (tmp_path / f"test{suffix}").write_text(lines[suffix])
    for data in (tmp_path, tmp_path / f"test{suffix}"):
        found = kind(data=str(data)).rows("test")
        assert len(found) == 2
        if kind is Sudoku:
            assert [row["puzzle"] for row in found] == [row["puzzle"] for row in rows]
        else:
            assert [(row["numbers"], row["target"]) for row in found] == [([3, 5], 15)] * 2
    with pytest.raises(UserError, match=r"train\.jsonl cannot be read"):
        kind(data=str(tmp_path)).rows("train")


def test_word_problems_come_from_tables_too_and_json_lines_stay_json_lines(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"How many, in all?",It is 2 #### 2\n')
    assert GSM8K(data=str(tmp_path / "a.csv")).rows("test")[0]["question"] == "How many, in all?"
    (tmp_path / "lines.json").write_bytes((DATA / "gsm8k.jsonl").read_bytes())
    (tmp_path / "list.json").write_text(json.dumps([json.loads(line) for line in (DATA / "gsm8k.jsonl").open()]))
    rows = [GSM8K(data=str(tmp_path / name)).rows("test") for name in ("lines.json", "list.json")]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    for name in ("gone/some.csv", "gone/some.tsv", "gone/some.json"):
        assert Source(name, "test").path == Path(name)
    assert Source("owner/name", "test").path is None


@kinds
def test_rows_of_a_hub_data_set_may_hold_numbers(kind, monkeypatch):
    asked = []
    grid = all_grids()[0]
    rows = {
        "countdown": [{"nums": [3, 5, 8], "target": 16}, {"nums": [44, 19, 35], "target": 98}],
        "sudoku": [{"Puzzle": int(grid.replace("1", "0")), "Solution": int(grid)}] * 2,
    }

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        return rows[kind.name]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = kind(data="someone/puzzles", subset="easy", protocol="d1")
    found = task.rows("test")
    assert asked == [("someone/puzzles", "easy", "test")] and len(task.sources("test")["someone/puzzles"]) == 64
    assert values(task.metric("d1"), [row["completion"] for row in found], found) == {1.0}
    if kind is Sudoku:
        assert found[0]["puzzle"] == grid.replace("1", "0") and found[0]["puzzle"].startswith("0")


SOLVED = "1234341221434321"


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        (
            Countdown,
            {"question": "1,2"},
            "fields 'input' and 'output', or 'nums' and 'target', are needed; .* question",
        ),
        (Countdown, {"input": "5", "output": "5"}, "field 'input' must be 2 to 12 whole numbers .* not '5'; correct"),
        (Countdown, {"input": "5,x", "output": "5"}, "field 'input' must be"),
        (Countdown, {"input": "5,,6", "output": "5"}, "field 'input' must be"),
        (Countdown, {"input": "5,-6", "output": "5"}, "field 'input' must be"),
        (Countdown, {"input": "5,1000000", "output": "5"}, "field 'input' must be"),
        (Countdown, {"input": "5,٣", "output": "5"}, "field 'input' must be"),
        (Countdown, {"nums": [1] * (MOST_NUMBERS + 1), "target": 5}, "field 'nums' must be"),
        (Countdown, {"nums": [1, True], "target": 5}, "field 'nums' must be"),
        (Countdown, {"nums": [1, 2.0], "target": 5}, "field 'nums' must be"),
        (Countdown, {"nums": {"1": 2}, "target": 5}, "field 'nums' must be"),
        (Countdown, {"nums": [1, 2], "output": 5}, "field 'target' must be a whole number .* not 'null'; correct"),
        (Countdown, {"nums": [1, 2], "target": "3.0"}, "field 'target' must be a whole number .* not '3.0'"),
        (Countdown, {"nums": [1, 2], "target": 10**9}, "field 'target' must be a whole number"),
        (Countdown, {"input": "1,2", "output": "three"}, "field 'output' must be a whole number .* not 'three'"),
        (Sudoku, {"Puzzle": SOLVED}, "field 'Solution' is missing; the row has Puzzle"),
        (Sudoku, {"puzzle_text": SOLVED}, "field 'Puzzle' is missing; the row has puzzle_text"),
        (Sudoku, {"Puzzle": SOLVED[:15], "Solution": SOLVED}, "field 'Puzzle' must be 16 digits 0-4.*zeros in front"),
        (Sudoku, {"puzzle": "5" + SOLVED[1:], "solution": SOLVED}, "field 'puzzle' must be 16 digits 0-4"),
        (Sudoku, {"puzzle": None, "solution": SOLVED}, "field 'puzzle' must be .* not 'null'"),
        (Sudoku, {"puzzle": -12, "solution": SOLVED}, "field 'puzzle' must be"),
        (Sudoku, {"puzzle": 10**16, "solution": SOLVED}, "field 'puzzle' must be"),
        (Sudoku, {"puzzle": "11" + "0" * 14, "solution": SOLVED}, "is a sudoku without a solution; correct or remove"),
        (Sudoku, {"puzzle": "0" * 16, "solution": "0" + SOLVED[1:]}, "field 'solution' must be 16 digits 1-4"),
        (Sudoku, {"puzzle": "0" * 16, "solution": "1234" * 4}, "1234123412341234 is no solved sudoku"),
        (Sudoku, {"puzzle": "2" + "0" * 15, "solution": SOLVED}, "solution 12343.* contradicts puzzle 20000"),
    ],
)
def test_a_bad_row_is_named_with_its_field_and_the_remedy(kind, row, says, tmp_path):
    good = {"input": "1,2", "output": "3"} if kind is Countdown else {"puzzle": SOLVED, "solution": SOLVED}
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"bad\.jsonl, row 3: .*{says}"):
        kind(data=str(tmp_path / "bad.jsonl")).rows("train")


def test_bare_rows_of_a_file_whose_answers_cannot_fit_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"input": "10,20,30", "output": "60"}\n{"input": "100,200,300", "output": "600"}\n')
    says = r"row 2: the shortest possible answer has 11 characters, but answer_length is 10: .*--protocol chat"
    with pytest.raises(UserError, match=says):
        Countdown(data=str(file)).rows("test")
    for fits in (Countdown(data=str(file), answer_length=11), Countdown(data=str(file), protocol="chat")):
        assert len(fits.rows("test")) == 2


def test_the_largest_row_has_answers_that_can_be_read(tmp_path):
    numbers = [999_999] * MOST_NUMBERS
    (tmp_path / "rows.jsonl").write_text(json.dumps({"nums": numbers, "target": 0}))
    task = Countdown(data=str(tmp_path / "rows.jsonl"), protocol="chat")
    [row] = task.rows("test")
    text = functools.reduce(lambda left, _: f"({left}-999999)", range(MOST_NUMBERS - 1), "999999")[1:-1]
    assert sorted(evaluate_expression(text)[1]) == numbers
    assert task.success([rf"\boxed{{{text}}}"], [row])[0].status == "ok"


# -- from end to end


@kinds
@pytest.mark.parametrize(("protocol", "block"), [("d1", 32), ("chat", 0)])
def test_an_evaluation_in_a_chat_decodes_as_its_protocol_says_and_is_scored_again_alike(
    kind, protocol, block, tmp_path
):
    out, again = tmp_path / "out.json", tmp_path / "again.json"
    command = ["eval", str(DATA / "llada"), "--task", kind.name, "--data", str(FILES[kind.name]), "--items", "2"]
    command += ["--protocol", protocol, "--answer_length", "64", "--out", str(out)]
    assert main([*command, *([] if block else ["--sampler.steps", "4", "--sampler.block", "16"])]) == 0
    result = json.loads(out.read_text())
    assert (result["task"], result["protocol"], list(result["sources"])) == (
        *(kind.name, protocol),
        [FILES[kind.name].name],
    )
    if block:
        assert {"steps": 32, "block": 32, "temperature": 0.0, "answer_length": 64}.items() <= result["sampler"].items()
    assert [item["question"][-1]["content"] == "<reasoning>" for item in result["generations"]] == [
        protocol == "d1"
    ] * 2
    assert main(["eval", "--task", kind.name, "--generations", str(out), "--out", str(again)]) == 0
    second = json.loads(again.read_text())
    for name in ("score", "interval", "items", "protocol", "parser", "generations"):
        assert result[name] == second[name]


def test_a_stored_answer_is_read_as_its_protocol_asked_for_it(tmp_path):
    item = {
        "task": "countdown",
        "question": "Numbers: 7, 4, 7\nTarget: 35",
        "ground_truth": None,
        "generation": "7*4+7",
    }
    for protocol, score in (("unmask", 1.0), ("chat", 0.0), ("unheard-of", 1.0), (["chat"], 1.0)):
        (tmp_path / "stored.json").write_text(json.dumps({"protocol": protocol, "generations": [item]}))
        assert rescore(read_generations(tmp_path / "stored.json"), Countdown())["score"] == score


@kinds
def test_both_kinds_of_training_take_a_chat(kind, tmp_path):
    small = ["--steps", "1", "--evaluation.every", "1", "--evaluation.items", "2", "--compute.dtype", "float32"]
    small += ["--sampler", "LowConfidence", "--sampler.steps", "8", "--sampler.block", "32"]
    small += ["--model", str(DATA / "llada"), "--task", kind.__name__, "--task.protocol", "d1"]
    trained = ["train", "--method", "maskgrpo", "--prompts", "1", "--answers", "2", *small]
    assert main([*trained, "--data", str(FILES[kind.name]), "--out", str(tmp_path / "rl")]) == 0
    metrics = json.loads((tmp_path / "rl/metrics.jsonl").read_text())
    assert {f"reward/{kind.name}", "reward/format"} <= metrics.keys()
    notes = json.loads((tmp_path / "rl/model/unmask.json").read_text())
    assert notes["answer_length"] == 256 and notes["task"]["init_args"]["protocol"] == "d1"
    assert main(["sft", "--batch", "2", *small, "--out", str(tmp_path / "sft")]) == 0


def test_a_tiny_model_is_asked_about_a_file(tmp_path):
    out = tmp_path / "out.json"
    command = ["eval", "builtin:sudoku", "--task", "sudoku", "--data", str(FILES["sudoku"]), "--out", str(out)]
    assert main(command) == 0
    result = json.loads(out.read_text())
    assert result["items"] == 6 and result["generations"][0]["question"] == "0043400020303412"


# -- the benchmark files


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("protocol", ["unmask", "chat", "d1"])
def test_all_rows_of_the_benchmark_files_are_read_and_their_demonstrations_win(protocol):
    folder = Path(os.environ["UNMASK_DATA"])
    countdown = Countdown(data=str(folder / "countdown/countdown_cd3_test.jsonl"), protocol=protocol)
    sudoku = Sudoku(data=str(folder / "sudoku/4x4_test_sudoku.csv"), protocol=protocol)
    for task, sizes in ((countdown, (243, 13, 256)), (sudoku, (476, 24, 500))):
        assert tuple(len(task.rows(split)) for split in SPLITS) == sizes
        rows = list(task.rows("test"))
        texts = [row["completion"] for row in rows]
        assert values(task.success, texts, rows) == {1.0}
        if protocol != "unmask" or task is countdown:
            assert values(task.metric("d1"), texts, rows) == {1.0}
    rows = sudoku.rows("test")
    assert len({row["cluster"] for row in rows}) == 229
    assert sum(len(solutions(row["puzzle"])) > 1 for row in rows) == 124
    assert any(row["puzzle"].startswith("0") for row in rows)
