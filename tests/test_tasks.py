"""Tasks: the same rows everywhere, splits that share nothing, demonstrations of known quality, clear errors."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import UserError
from unmask.rewards.text import gold_number
from unmask.tasks import GSM8K, NAMES, Arithmetic, Countdown, Prompts, Sudoku, by_name
from unmask.tasks.arithmetic import careless_addition
from unmask.tasks.countdown import careless_expression
from unmask.tasks.files import held_out
from unmask.tasks.sudoku import all_grids, careless_solution, grids_by_split, solutions

DATA = Path(__file__).parent / "data"
WORLDS = [Sudoku(), Countdown(), Arithmetic()]
SPLITS = ("train", "validation", "test")

worlds = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
needs_data = pytest.mark.skipif("UNMASK_DATA" not in os.environ, reason="UNMASK_DATA does not name the benchmark files")


def values(task, texts, rows):
    return [score.value for score in task.success(texts, rows)]


def digest(rows) -> str:
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]


# -- generated worlds


@worlds
def test_own_answers_are_solved_and_use_the_alphabet_and_fit_the_slots(world):
    for split in SPLITS:
        rows = world.rows(split)[:300]
        for column in ("answer", "completion"):
            assert set(values(world, [row[column] for row in rows], rows)) == {1.0}
        for row in rows:
            assert set(row["prompt"] + row["answer"]) <= set(world.alphabet)
            assert len(row["answer"]) <= world.answer_length
            assert row["completion"] == row["answer"]


@worlds
def test_rows_are_plain_data_with_distinct_ids(world):
    rows = [row for split in SPLITS for row in world.rows(split)[:300]]
    assert len({row["id"] for row in rows}) == len(rows)
    assert json.loads(json.dumps(rows)) == rows


@worlds
def test_fixed_sets_have_distinct_prompts_and_the_asked_size(world):
    for split, size in (("validation", 300), ("test", 600)):
        rows = world.rows(split)
        assert len(rows) == len({row["prompt"] for row in rows}) == size
    assert len(type(world)(test_items=20).rows("test")) == 20


def keys_of(world, row) -> object:
    return tuple(sorted(row["operands"])) if world.name == "arithmetic" else row["cluster"]


@worlds
def test_splits_share_no_grid_no_numbers_and_no_pair(world):
    seen = {split: {keys_of(world, row) for row in world.rows(split)[:3000]} for split in SPLITS}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_the_288_sudoku_grids_are_cut_into_202_28_and_58():
    assert len(set(all_grids())) == 288
    sizes = {split: len(grids) for split, grids in grids_by_split().items()}
    assert sizes == {"train": 202, "validation": 28, "test": 58}
    assert sorted(grid for grids in grids_by_split().values() for grid in grids) == sorted(all_grids())
    assert {row["cluster"] for row in Sudoku().rows("test")} == set(grids_by_split()["test"])


PINNED = {
    "sudoku": ("bcbceefc97d61122", "6904d91de1aef18e", "1733e19c81a560e5"),
    "countdown": ("70dfe8666e1bc707", "f56f46b32a345cd9", "7bb2436362da4c3b"),
    "arithmetic": ("e64418accb9f59cf", "d738ebc8ed441174", "868ddc31a5bb14ec"),
}


@worlds
def test_rows_are_the_same_in_every_release(world):
    assert tuple(digest(world.rows(split)[:200]) for split in SPLITS) == PINNED[world.name]


def test_rows_are_the_same_in_every_interpreter():
    code = (
        "import hashlib, json; from unmask.tasks import NAMES\n"
        "for name in ('sudoku', 'countdown', 'arithmetic'):\n"
        "    rows = NAMES[name]().rows('train')[:200]\n"
        "    print(hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16])"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert run.stdout.split() == [PINNED[name][0] for name in ("sudoku", "countdown", "arithmetic")]


@worlds
def test_a_training_row_depends_on_its_index_and_seed_alone(world):
    rows = world.rows("train")
    assert len(rows) == 2**20
    assert rows[7] == rows[5:9][2] == world.rows("train")[7]
    assert rows[-1] == rows[2**20 - 1]
    with pytest.raises(IndexError):
        rows[2**20]
    other = type(world)(data_seed=1)
    assert digest(other.rows("train")[:50]) != digest(rows[:50])
    assert other.rows("test") == world.rows("test")


@worlds
def test_carelessness_changes_training_demonstrations_only(world):
    careless = type(world)(careless_at_fewest=1.0, careless_at_most=1.0)
    assert careless.rows("test") == world.rows("test")
    assert careless.rows("validation") == world.rows("validation")
    for row, right in zip(careless.rows("train")[:200], world.rows("train")[:200], strict=True):
        assert {**row, "completion": right["completion"]} == right


def share_right(world, rows) -> float:
    return sum(values(world, [row["completion"] for row in rows], rows)) / len(rows)


@worlds
def test_careless_demonstrations_are_well_formed_and_as_frequent_as_asked(world):
    rows = type(world)(careless_at_fewest=0.2, careless_at_most=0.8).rows("train")[:8000]
    always = type(world)(careless_at_fewest=1.0, careless_at_most=1.0).rows("train")[:8000]
    assert {score.status for score in world.success([row["completion"] for row in always], always)} == {"ok"}

    def difficulty(row):
        if world.name == "sudoku":
            return (row["blanks"] - 4) / 6
        return row["carries"] / 3 if world.name == "arithmetic" else (2 - row["answer"].count("+")) / 2

    # Where the careless answer is wrong, it is shown with the law's probability.
    wrong, told = Counter(), Counter()
    for row, slip in zip(rows, always, strict=True):
        if slip["completion"] != slip["answer"]:
            told[difficulty(row)] += 1
            wrong[difficulty(row)] += row["completion"] == slip["completion"]
    assert len(told) >= 3
    for level, count in told.items():
        expected = 0.2 + 0.6 * level
        assert abs(wrong[level] / count - expected) < 4 * (expected * (1 - expected) / count) ** 0.5 + 1e-9


@worlds
def test_impossible_settings_are_refused_with_the_field_named(world):
    for wrong in ({"careless_at_most": 1.5}, {"answer_length": 3}, {"answer_length": 0}, {"test_items": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            type(world)(**wrong)
    with pytest.raises(UserError, match=r"no split 'dev'.*train, validation, test"):
        world.rows("dev")
    with pytest.raises(UserError, match="lower test_items"):
        Sudoku(fewest_blanks=1, most_blanks=1, test_items=2000).rows("test")


def test_sudokus_have_one_solution_and_uniformly_many_blanks():
    rows = Sudoku().rows("train")[:2000]
    assert all(solutions(row["puzzle"]) == [row["answer"]] for row in rows[:300])
    blanks = Counter(row["puzzle"].count("0") for row in rows)
    assert set(blanks) == set(range(4, 11))
    assert min(blanks.values()) > 220
    assert all(row["blanks"] == 12 for row in Sudoku(fewest_blanks=12, most_blanks=12).rows("train")[:20])
    with pytest.raises(UserError, match="most_blanks"):
        Sudoku(most_blanks=13)


def test_solutions_of_a_puzzle_agree_with_a_search():
    puzzle = "1200340021430000"
    assert solutions(puzzle) == [g for g in all_grids() if all(a in ("0", b) for a, b in zip(puzzle, g, strict=True))]
    assert len(solutions("0" * 16)) == 288


def test_a_careless_sudoku_solver_writes_the_smallest_digit_that_a_row_lacks():
    assert careless_solution("3400200003121230") == "3411211143121234"
    rows = Sudoku(careless_at_fewest=1, careless_at_most=1).rows("train")[:2000]
    shares = [share_right(Sudoku(), [row for row in rows if row["blanks"] == n]) for n in (4, 10)]
    assert 0.05 < shares[0] < 0.3 and shares[1] < 0.01


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**20 - 1))
def test_a_careless_expression_has_the_numbers_but_not_the_value(i):
    row = Countdown().rows("train")[i]
    score = Countdown().success([careless_expression(row["answer"])], [row])[0]
    assert (score.value, score.status) == (0.1, "ok")


def test_a_careless_adder_forgets_the_carries():
    assert careless_addition(478, 356) == "14,12,07:724"
    assert careless_addition(12, 34) == "06,04:46"
    assert careless_addition(95, 14) == "09,10:109"
    assert Arithmetic().rows("train")[0]["answer"].endswith(f":{sum(Arithmetic().rows('train')[0]['operands'])}")


def test_the_default_rewards_of_worlds_pay_their_own_answers_in_full():
    for world in [*WORLDS, Sudoku(soft=True), Countdown(partial=0.0)]:
        rows = world.rows("validation")[:20]
        for weighted in world.rewards():
            scores = weighted.reward([row["answer"] for row in rows], rows)
            assert {score.value for score in scores} == {1.0}


def test_task_names_lead_to_classes():
    assert by_name("sudoku") is Sudoku
    assert set(NAMES) >= {"sudoku", "countdown", "arithmetic", "gsm8k", "prompts"}
    with pytest.raises(UserError, match=r"sudoko.*sudoku"):
        by_name("sudoko")


# -- held-out rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=3), max_size=30), st.floats(0, 0.99))
def test_equal_keys_are_never_on_both_sides_and_both_sides_have_rows(keys, share):
    out = held_out(keys, share)
    assert not {k for k, o in zip(keys, out, strict=True) if o} & {k for k, o in zip(keys, out, strict=True) if not o}
    if len(set(keys)) > 1 and share > 0:
        assert 0 < sum(out) < len(out)
    else:
        assert not any(out)


# -- GSM8K


def test_gsm8k_rows_are_chats_with_demonstrations_that_win_every_reward():
    task = GSM8K(data=str(DATA / "gsm8k.jsonl"))
    rows = task.rows("test")
    assert [row["id"] for row in rows] == [f"gsm8k-test-{i}" for i in (1, 2, 3, 4)]
    for row in rows:
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
        assert row["prompt"][0]["content"].endswith(row["question"])
        assert "<<" not in row["completion"]
        assert "####" not in row["completion"]
    texts = [row["completion"] for row in rows]
    for weighted in task.rewards():
        expected = [1.0] * 3 + [float(weighted.reward.name != "integer")]  # the last answer is 3.50
        assert [score.value for score in weighted.reward(texts, rows)] == expected
    assert [(w.reward.name, w.weight) for w in task.rewards()] == [("number", 2.0), ("integer", 0.5), ("format", 0.5)]
    assert values(task, [r"\boxed{1,200}"] * 4, rows) == [0, 1, 0, 0]


def test_gsm8k_validation_is_a_slice_of_the_training_rows_and_files_are_hashed(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_bytes((DATA / "gsm8k.jsonl").read_bytes())
    task = GSM8K(data=str(tmp_path), validation_share=0.3)
    train, validation, test = (task.rows(split) for split in SPLITS)
    assert (len(train), len(validation), len(test)) == (3, 1, 4)
    assert {row["question"] for row in train}.isdisjoint({row["question"] for row in validation})
    sha = hashlib.sha256((DATA / "gsm8k.jsonl").read_bytes()).hexdigest()
    assert task.sources("validation") == {"train.jsonl": sha}
    assert task.sources("test") == {"test.jsonl": sha}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": "How many?"}', "row 2: field 'answer'"),
        ('{"answer": "#### 1"}', "row 2: field 'question'"),
        ('{"question": " ", "answer": "#### 1"}', "row 2: field 'question'"),
        ('{"question": "How many?", "answer": 5}', "row 2: field 'answer'"),
        ('{"question": "How many?", "answer": "#### several"}', r"row 2: field 'answer'.*several.*#### and a number"),
        ("[1]", "row 2: a JSON list"),
        ("{", "row 2: not JSON"),
        ("[" * 100_000, "row 2: not JSON"),
    ],
)
def test_a_bad_gsm8k_row_is_named_with_its_field_and_the_remedy(tmp_path, line, says):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"question": "How many?", "answer": "#### 1"}\n' + line + "\n")
    with pytest.raises(UserError, match=f"bad.jsonl, {says}"):
        GSM8K(data=str(file)).rows("test")


def test_what_looks_like_a_local_path_never_goes_to_the_hub(tmp_path, monkeypatch):
    def load_dataset(*_, **__):
        raise AssertionError("went to the hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for path in ("gone.jsonl", "some/gone.jsonl", "./a/b", "/a/b", "a/b/c", "here/gone", "gone", ""):
        with pytest.raises(UserError, match=r"cannot be read|went to the hub") as caught:
            GSM8K(data=path).rows("test")
        assert "went to the hub" not in str(caught.value)


def test_a_hub_data_set_is_read_through_datasets(monkeypatch):
    rows = [json.loads(line) for line in (DATA / "gsm8k.jsonl").read_text().splitlines()]
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        return rows

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = GSM8K()
    assert len(task.rows("validation")) == 1
    assert asked == [("openai/gsm8k", "main", "train")]
    assert len(task.sources("test")["openai/gsm8k"]) == 64


def test_a_missing_extra_and_an_unreachable_hub_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        GSM8K().rows("test")

    def load_dataset(*_, **__):
        raise ConnectionError("no network\nlong story")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match="cannot be loaded: no network; check"):
        GSM8K().rows("test")


# -- a user's own prompts


def test_prompts_keep_all_columns_and_both_prompt_forms():
    task = Prompts(data=str(DATA / "prompts.jsonl"), validation_share=0.25)
    train, validation = task.rows("train"), task.rows("validation")
    assert (len(train), len(validation)) == (3, 1)
    rows = {row["id"]: row for row in [*train, *validation]}
    assert set(rows) == {"1", "2", "planet", "5"}  # row 3 is a blank line
    assert rows["1"] == {"id": "1", "prompt": "Name a colour of the rainbow.", "colours": ["red", "blue"]}
    assert rows["2"]["prompt"][1] == {"role": "user", "content": "Name a month."}
    assert task.sources("train").keys() == {"prompts.jsonl"}


def test_the_last_assistant_turn_of_a_chat_is_the_completion():
    rows = Prompts(data=str(DATA / "messages.jsonl"), validation_share=0).rows("train")
    assert rows[1]["completion"] == "Take care."
    assert [turn["content"] for turn in rows[1]["prompt"]] == ["Hi.", "Hello!", "Bye."]
    assert "messages" not in rows[1]


def test_prompts_have_neither_reward_nor_test_split_of_their_own():
    task = Prompts(data=str(DATA / "prompts.jsonl"))
    with pytest.raises(UserError, match="--reward"):
        task.rewards()
    with pytest.raises(UserError, match=r"no split 'test'; it has train, validation"):
        task.rows("test")
    with pytest.raises(UserError, match="--data FILE"):
        Prompts().rows("train")
    assert task.success(["x"], [{}])[0].status == "not_applicable"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a"}', "field 'prompt' is missing"),
        ('{"prompt": ""}', "field 'prompt' is empty"),
        ('{"prompt": 3}', "field 'prompt' must be a list"),
        ('{"prompt": []}', "field 'prompt' must be a list"),
        ('{"prompt": [{"role": "user"}]}', "field 'prompt': each turn needs"),
        ('{"prompt": "a", "completion": 1}', "field 'completion' must be a text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "field 'messages' must end in an assistant's turn"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "field 'messages' must end in an assistant's turn"),
    ],
)
def test_a_bad_prompt_row_is_named_with_its_field(tmp_path, line, says):
    file = tmp_path / "bad.jsonl"
    file.write_text(line)
    with pytest.raises(UserError, match=f"bad.jsonl, row 1: {says}"):
        Prompts(data=str(file)).rows("train")


def test_an_unreadable_data_file_is_one_line(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    for name, says in [("empty", "has no rows"), ("latin", "not UTF-8"), ("gone", "cannot be read: No such file")]:
        with pytest.raises(UserError, match=f"{name}.jsonl.*{says}"):
            Prompts(data=str(tmp_path / f"{name}.jsonl")).rows("train")
    (tmp_path / "one.jsonl").write_text('{"prompt": "a\u2028b"}')
    assert len(Prompts(data=str(tmp_path / "one.jsonl")).rows("train")) == 1
    with pytest.raises(UserError, match="no rows for validation"):
        Prompts(data=str(tmp_path / "one.jsonl")).rows("validation")


# -- the benchmark files


@pytest.mark.data
@needs_data
def test_all_gsm8k_golds_parse_and_demonstrations_win():
    task = GSM8K(data=str(Path(os.environ["UNMASK_DATA"]) / "gsm8k"))
    sizes, negative = {}, 0
    for split in SPLITS:
        rows = task.rows(split)
        sizes[split] = len(rows)
        negative += sum(gold_number(row["answer"]) < 0 for row in rows)
        assert set(values(task, [row["completion"] for row in rows], rows)) == {1.0}
    assert sizes == {"train": 7099, "validation": 374, "test": 1319}
    assert negative == 5


@pytest.mark.data
@needs_data
def test_every_listed_sudoku_solution_is_accepted():
    with (Path(os.environ["UNMASK_DATA"]) / "sudoku" / "4x4_test_sudoku.csv").open(newline="") as file:
        rows = [{"puzzle": row["Puzzle"], "answer": row["Solution"]} for row in csv.DictReader(file)]
    assert set(values(Sudoku(), [row["answer"] for row in rows], rows)) == {1.0}
    assert sum(len(solutions(row["puzzle"])) > 1 for row in rows) == 124


def test_carelessness_can_jump_at_a_difficulty():
    world = Sudoku(careless_at_fewest=0.0, careless_at_most=1.0, careless_jump=0.5)
    for row in world.rows("train")[:300]:
        assert row["completion"] == (careless_solution(row["puzzle"]) if row["blanks"] >= 7 else row["answer"])
