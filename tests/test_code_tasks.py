"""Programming tasks: their rows, the reward of programs, and the world of tiny programs."""

import contextlib
import hashlib
import json
import os
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs import sandbox_works
from unmask.cli import main
from unmask.errors import UserError
from unmask.rewards import Code, by_name
from unmask.rewards.code import Expression, fenced_code
from unmask.rewards.sandbox import CodeExecutor, CodeResult, Limits, LocalSandbox
from unmask.rewards.text import Unreadable
from unmask.tasks import MBPP, NAMES, AceCode, HumanEval, Programs
from unmask.tasks.programs import careless_program, programs, programs_by_split

DATA = Path(__file__).parent / "data"
FILES = {MBPP: "mbpp.jsonl", HumanEval: "humaneval.jsonl", AceCode: "acecode.jsonl"}


needs_sandbox = pytest.mark.skipif(not sandbox_works(), reason="no sandbox can start on this machine")
needs_data = pytest.mark.skipif("UNMASK_DATA" not in os.environ, reason="UNMASK_DATA does not name the benchmark files")
ROW = {"id": "r1", "tests": ["assert f(2) == 4", "assert f(3) == 9"]}


def fence(code: str) -> str:
    return f"Here it is.\n```python\n{code}\n```\nDone."


class Recorded(CodeExecutor):
    """Answers every job with the same result and remembers the jobs."""

    def __init__(self, result=None):
        self.jobs, self.result = [], result

    def check(self):
        pass

    def run(self, jobs):
        self.jobs += jobs
        return [self.result or CodeResult(("passed",) * len(job.tests)) for job in jobs]


# -- reading programs


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("```py\na = 1\n```", "a = 1\n"),
        ("```Python \r\na = 1\n```", "a = 1\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("so ```python\na\n``` or better ```python\nb\n``` yes", "b\n"),
        ("```python\na\n```\n```bash\npip install\n```", "a\n"),
        ("```bash\nls\n```\n```python\na\n", "a\n"),
        ("```python\na\n```\n```python\nb", "a\n"),
        ("```python\na\n```python\nb\n```", "b\n"),
        ("```python\na\n", "a\n"),
        ("```python\nreturn x```", "return x"),
        ("````python\na\n````", "a\n"),
        ("```python\n```", ""),
    ],
)
def test_the_program_is_the_last_closed_fence_else_the_last_opened(text, code):
    assert fenced_code(text) == code


@pytest.mark.parametrize("text", ["", "def f(x): return x", "```bash\nls\n```", "```json\n{}", "`f`", "``\nf\n``"])
def test_without_a_fence_of_python_nothing_is_run(text):
    with pytest.raises(Unreadable):
        fenced_code(text)
    recorded = Recorded()
    score = Code(sandbox=recorded).judge(text, ROW)
    assert (score.value, score.status, recorded.jobs) == (0.0, "invalid", [])


@given(st.text() | st.lists(st.sampled_from(["```", "```python\n", "\n", "a", "`", "py"]), max_size=30).map("".join))
def test_reading_a_program_is_total(text):
    with contextlib.suppress(Unreadable):
        assert fenced_code(text) in text


def test_many_fences_are_read_in_one_pass():
    assert fenced_code("```python\n" * 6000) == ""
    assert len(fenced_code("```python\n" + "`" * 2 + "a" * 60_000)) == 60_002


# -- the reward


@needs_sandbox
def test_the_reward_is_the_share_of_tests_or_all_of_them():
    texts = [fence(code) for code in ("def f(x): return x * x", "def f(x): return 4", "def f(x): return", "def f(x")]
    scores = Code()(texts, [ROW] * 4)
    assert [score.value for score in scores] == [1.0, 0.5, 0.0, 0.0]
    assert {score.status for score in scores} == {"ok"}
    assert scores[1].details == {"tests": ["passed", "failed"]}
    assert scores[3].details == {"tests": ["load: SyntaxError"] * 2}
    assert [score.value for score in Code(all_or_nothing=True)(texts, [ROW] * 4)] == [1.0, 0.0, 0.0, 0.0]


@needs_sandbox
def test_a_batch_is_judged_like_its_items_and_invalid_ones_keep_their_place():
    texts = [fence("def f(x): return x * x"), "nothing", fence("import os; os._exit(0)"), "[MASK]" + fence("f = abs")]
    batch = Code()(texts, [ROW] * 4)
    assert [(score.value, score.status) for score in batch] == [(1, "ok"), (0, "invalid"), (0, "ok"), (0, "invalid")]
    assert [Code().judge(text, ROW) for text in texts] == batch
    assert Code()(texts[::-1], [ROW] * 4)[::-1] == batch


def test_a_failure_of_the_sandbox_is_an_infra_error_and_end_tokens_are_cut():
    score = Code(sandbox=Recorded(CodeResult(infra_error="down"))).judge(fence("pass"), ROW)
    assert (score.status, score.details) == ("infra_error", {"reason": "down"})
    recorded = Recorded()
    reward = Code(sandbox=recorded).for_tokens(["</s>"], ["<hole>"])
    assert reward.judge("```\na\n```</s>```\nb\n```", ROW).value == 1
    assert reward.judge("<hole>```\na\n```", ROW).status == "invalid"
    assert [job.code for job in recorded.jobs] == ["a\n"]


def test_columns_of_a_row_reach_the_sandbox():
    recorded = Recorded()
    row = {**ROW, "setup": "import math", "entry": "f", "prelude": "import re"}
    Code(sandbox=recorded).judge(fence("def f(x): pass"), row)
    (job,) = recorded.jobs
    assert (job.setup, job.entry, job.code) == ("import math", "f", "import re\ndef f(x): pass\n")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": "r1"}, "row r1 needs a column 'tests'"),
        ({"id": "r1", "tests": "assert f"}, "row r1 needs a column 'tests'"),
        ({"id": "r1", "tests": [1]}, "row r1 needs a column 'tests'"),
        ({"id": "r1", "tests": []}, "row r1: there are no tests"),
        ({"id": "r1", "tests": ["assert f("]}, "row r1: test 1 is not Python"),
    ],
)
def test_rows_without_usable_tests_are_named(row, says):
    with pytest.raises(UserError, match=says):
        by_name("code")([fence("pass")], [row])


# -- MBPP, HumanEval, AceCode


def task_of(kind, **options):
    return kind(data=str(DATA / FILES[kind]), **options)


@needs_sandbox
@pytest.mark.parametrize("kind", [MBPP, HumanEval])
def test_reference_solutions_are_solved_and_wrong_ones_are_not(kind):
    task = task_of(kind)
    rows = [row for split in task.splits for row in task.rows(split)]
    assert len(rows) >= 2
    assert {score.value for score in task.success([row["completion"] for row in rows], rows)} == {1.0}
    ((weighted,), wrong) = (task.rewards(), [fence("def double(x): return 4") for _ in rows])
    assert weighted.weight == 1 and isinstance(weighted.reward, Code)
    assert {score.value for score in task.success(wrong, rows)} == {0.0}


def test_mbpp_splits_are_the_official_ones():
    task = task_of(MBPP)
    ids = {split: [row["id"] for row in task.rows(split)] for split in task.splits}
    assert ids == {"train": ["mbpp-601", "mbpp-974"], "validation": ["mbpp-511"], "test": ["mbpp-11"]}
    sanitized = MBPP(data=str(DATA / "mbpp_sanitized.jsonl"))
    (row,) = sanitized.rows("test")
    assert row["setup"] == "import math"
    with pytest.raises(UserError, match=r"no rows for train; its rows need a 'task_id'"):
        sanitized.rows("train")


def test_mbpp_prompts_show_some_tests_and_hide_the_others():
    (row,) = task_of(MBPP).rows("test")
    ((turn),) = row["prompt"]
    assert turn["role"] == "user" and "Write a function to double a number." in turn["content"]
    assert [test in turn["content"] for test in row["tests"]] == [True, False, False]
    (row,) = task_of(MBPP, shown_tests=3).rows("test")
    assert all(test in row["prompt"][0]["content"] for test in row["tests"])
    assert row["completion"] == "```python\ndef double(x):\n\treturn x * 2\n```"
    with pytest.raises(UserError, match="shown_tests"):
        MBPP(shown_tests=0)


@needs_sandbox
def test_humaneval_tests_see_the_helpers_of_the_prompt_not_those_of_the_program():
    task = task_of(HumanEval)
    even, root = task.rows("test")
    assert "def root(xs: list):" in root["prompt"][0]["content"]
    cheat = fence("def poly(xs, x): return 0\ndef root(xs): return 0")
    no_imports = fence("def count_even(numbers: List[int]) -> int:\n    return len([n for n in numbers if n % 2 == 0])")
    no_function = fence("x = 1")
    scores = task.success([cheat, no_imports, no_function], [root, even, even])
    assert [score.value for score in scores] == [0, 1, 0]
    assert even["id"] == "Own/0"


@needs_sandbox
def test_acecode_is_for_training_and_holds_out_a_slice():
    task = task_of(AceCode, validation_share=0.3)
    train, validation = task.rows("train"), task.rows("validation")
    assert (len(train), len(validation)) == (2, 1)
    rows = {row["id"]: row for row in [*train, *validation]}
    code = "def largest(n): return max(n)\ndef reverse(t): return t[::-1]\ndef ends(i): return i[0], i[-1]"
    assert [score.value for score in task.success([fence(code)] * 3, list(rows.values()))] == [1, 1, 1]
    assert "test_cases" not in rows["own-0"] and "assert" not in rows["own-0"]["prompt"][0]["content"]
    for kind, split, says in [(AceCode, "test", "train, validation"), (HumanEval, "train", "it has test")]:
        with pytest.raises(UserError, match=rf"no split '{split}'.*{says}"):
            task_of(kind).rows(split)


GOOD = {kind: json.loads((DATA / name).read_text().splitlines()[0]) for kind, name in FILES.items()}


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        (MBPP, {"text": ""}, "field 'text' must be a text"),
        (MBPP, {"code": None}, "field 'code' must be a text"),
        (MBPP, {"test_list": []}, "field 'test_list' must be a list"),
        (MBPP, {"test_list": "assert"}, "field 'test_list' is one text"),
        (MBPP, {"test_list": ["assert 1 =="]}, "test 1 is not Python"),
        (MBPP, {"task_id": "11"}, "field 'task_id' must be a whole number"),
        (HumanEval, {"entry_point": "a b"}, "field 'entry_point' must be the name"),
        (HumanEval, {"prompt": "def f("}, "setup is not Python"),
        (HumanEval, {"test": 5}, "field 'test' must be a text"),
        (AceCode, {"question": " "}, "field 'question' must be a text"),
        (AceCode, {"test_cases": [5]}, "field 'test_cases' must be a list"),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_its_field(tmp_path, kind, change, says):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(GOOD[kind]) + "\n" + json.dumps({**GOOD[kind], **change}) + "\n")
    with pytest.raises(UserError, match=f"bad.jsonl, row 2: {says}"):
        kind(data=str(file)).rows(kind.splits[-1])


@pytest.mark.parametrize(
    ("kind", "split", "asked"),
    [
        (MBPP, "test", ("google-research-datasets/mbpp", "full", "test")),
        (HumanEval, "test", ("openai/openai_humaneval", None, "test")),
        (AceCode, "validation", ("TIGER-Lab/AceCode-87K", None, "train")),
    ],
)
def test_hub_data_sets_are_read_through_datasets(monkeypatch, kind, split, asked):
    calls = []

    def load_dataset(name, subset, split):
        calls.append((name, subset, split))
        return [json.loads(line) for line in (DATA / FILES[kind]).read_text().splitlines()]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert kind().rows(split)
    assert calls == [asked]
    assert len(kind().sources(split)[asked[0]]) == 64
    assert task_of(kind).sources(split).keys() == {FILES[kind]}
    with pytest.raises(UserError, match="cannot be read"):
        kind(data="./gone/rows.jsonl").rows(split)


def test_a_missing_extra_and_an_unreachable_hub_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        MBPP().rows("test")

    def load_dataset(*_, **__):
        raise ConnectionError("no network\nlong story")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match="cannot be loaded: no network; check"):
        HumanEval().rows("test")


# -- stored generations


def stored(folder: Path, task, *answers: str) -> str:
    """Every row of the test split with these answers, as `unmask eval` records them."""
    file = folder / "stored.jsonl"
    rows = task.rows("test")
    records = [
        {"task": task.name, "index": i, "copy": copy, "question": row["prompt"], "ground_truth": row["answer"]}
        | {"generation": answer.format(right=row["completion"])}
        for i, row in enumerate(rows)
        for copy, answer in enumerate(answers)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


@needs_sandbox
@pytest.mark.parametrize("kind", [MBPP, HumanEval])
def test_stored_programs_are_judged_again_by_their_own_tests(kind, tmp_path, capsys):
    file = stored(tmp_path, task_of(kind), "{right}", "no program", "```python\nx = 1\n```", "{right}")
    out = tmp_path / "out.json"
    assert main(["eval", "--task", kind.name, "--generations", file, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["score"] == 0.5 and result["items"] == len(task_of(kind).rows("test"))
    assert result["pass_at"] == {"1": 0.5, "2": pytest.approx(5 / 6), "4": 1.0} and result["infra_errors"] == 0
    first = result["generations"][:4]
    assert [item["status"] for item in first] == ["ok", "invalid", "ok", "ok"]
    assert set(first[0]["tests"]) == {"passed"} and "passed" not in first[2]["tests"]
    assert main(["eval", "--task", kind.name, "--generations", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["generations"] == result["generations"]


def test_a_list_of_tests_is_a_ground_truth_too_and_others_are_named():
    assert MBPP().stored_row("?", ["assert f(2) == 4"]) == {"tests": ["assert f(2) == 4"]}
    for truth in ("assert True", [], [3], {"tests": ["assert True"], "setup": 3}, {}, None, ["assert ("]):
        with pytest.raises(ValueError, match=r"list of Python tests|not Python|syntax"):
            MBPP().stored_row("?", truth)


def test_the_protocol_of_maskgrpo_shows_all_tests_of_mbpp():
    shown = [task_of(MBPP, **more).rows("test")[0]["prompt"] for more in ({}, {"protocol": "maskgrpo"})]
    assert [prompt[0]["content"].count("assert ") for prompt in shown] == [1, 3]
    assert [len(prompt) for prompt in shown] == [1, 1]  # no prefill


def test_code_tasks_have_names():
    assert {"mbpp": MBPP, "humaneval": HumanEval, "acecode": AceCode, "programs": Programs}.items() <= NAMES.items()


# 367, 533, 596, 601 and 927 hand objects of classes, types or modules to the program or back, which do not cross to the
# worker; 123 takes longer than 3 s.
NOT_PASSED = {f"mbpp-{number}" for number in (123, 367, 533, 596, 601, 927)}


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("backend", ["bubblewrap", "landlock"])
def test_all_mbpp_solutions_pass_but_six(backend):
    try:
        LocalSandbox(backend).check()
    except UserError as error:
        pytest.skip(str(error))
    file = Path(os.environ["UNMASK_DATA"]) / "mbpp" / "mbpp.jsonl"
    task = MBPP(data=str(file), sandbox=LocalSandbox(backend))
    rows = [task._row(place, row, 0) for place, row in task._source("test").rows()]
    scores = task.success([row["completion"] for row in rows], rows)
    assert len(rows) == 974 and {score.status for score in scores} == {"ok"}
    assert {row["id"] for row, score in zip(rows, scores, strict=True) if score.value != 1} == NOT_PASSED


# -- the world of tiny programs


def test_programs_are_distinct_functions_and_splits_share_none():
    every = programs()
    points = [(x, y) for x in range(10) for y in range(10)]
    assert len({tuple(map(program, points)) for program in every.values()}) == len(every) == 718
    for text, program in every.items():
        assert [eval(text, {"x": x, "y": y, "max": max, "min": min}) for x, y in points] == list(map(program, points))
        assert program.operations == sum(text.count(sign) for sign in ("x+y", "x-y", "y-x", "x*y", "m")) + (
            program.scale > 1
        ) + (program.shift != 0)
    splits = programs_by_split()
    assert {split: len(texts) for split, texts in splits.items()} == {"train": 503, "validation": 71, "test": 144}
    for split, texts in splits.items():
        assert {row["cluster"] for row in Programs().rows(split)[:300]} <= set(texts)


def test_items_fit_the_alphabet_and_the_slots_and_have_one_answer_in_the_family():
    world = Programs(careless_at_fewest=0.5, careless_at_most=0.5)
    rows = [row for split in ("train", "validation", "test") for row in world.rows(split)[:300]]
    assert len({row["id"] for row in rows}) == len(rows)
    assert json.loads(json.dumps(rows)) == rows
    assert set("".join(row["prompt"] + row["answer"] + row["completion"] for row in rows)) <= set(world.alphabet)
    assert len(set(world.alphabet)) == len(world.alphabet) == 25
    assert max(len(row["answer"]) for row in rows) <= world.answer_length
    assert max(len(row["prompt"]) for row in rows) <= 32
    for row in rows[:100]:
        points = [tuple(map(int, pair.split(","))) for pair in (e.split(">")[0] for e in row["prompt"][:-1].split(";"))]
        values = [int(example.split(">")[1]) for example in row["prompt"][:-1].split(";")]
        fits = [text for text, program in programs().items() if list(map(program, points)) == values]
        assert fits == [row["answer"]]
    assert all(row["prompt"].startswith("0,0>") and row["prompt"].count(";1,0>") == 1 for row in rows)
    counts = Counter(row["operations"] for row in rows)
    assert counts[3] > counts[2] > counts[1] > 20


def test_rows_of_programs_are_the_same_in_every_release_and_seed_alone_changes_training():
    digests = [
        hashlib.sha256(json.dumps(list(Programs().rows(split)[:200])).encode()).hexdigest()[:16]
        for split in ("train", "validation", "test")
    ]
    assert digests == PINNED
    assert Programs(data_seed=1).rows("train")[0] != Programs().rows("train")[0]
    assert Programs(data_seed=1).rows("test") == Programs().rows("test")


PINNED = ["9d3393f0cdb5a196", "3dc9903316024f33", "76f425a15d1ee5de"]


@needs_sandbox
def test_answers_are_solved_careless_ones_seldom_and_hard_coded_examples_never():
    world = Programs(careless_at_fewest=1, careless_at_most=1)
    rows = world.rows("train")[:60]
    assert {score.value for score in world.success([row["answer"] for row in rows], rows)} == {1.0}
    careless = world.success([row["completion"] for row in rows], rows)
    assert {score.status for score in careless} == {"ok"}
    shares = {n: [s.value for s, row in zip(careless, rows, strict=True) if row["operations"] == n] for n in (1, 2, 3)}
    assert 0.2 < sum(shares[1]) / len(shares[1]) < 0.8 and sum(shares[2]) + sum(shares[3]) == 0
    points = "{(9,4):13,(2,9):6,(9,2):13,(2,5):6}"
    row = {**rows[0], "tests": ["assert [f(9, 4), f(2, 5)] == [13, 6]", "assert f(1, 1) == 5"]}
    (score,) = world.success([f"{points}[x,y]"], [row])
    assert score.value == 0 and score.details["tests"] == ["passed", "error: KeyError"]


def test_the_careless_answer_explains_the_first_example():
    assert careless_program((3, 5), 17) == "x+14"
    assert careless_program((9, 1), 2) == "x-7"
    assert careless_program((4, 0), 4) == "x"
    world = Programs(careless_at_fewest=0.1, careless_at_most=0.9)
    right = Counter()
    rows = world.rows("train")[:1500]
    for row in rows:
        right[row["operations"]] += row["completion"] == row["answer"]
    total = Counter(row["operations"] for row in rows)
    assert right[2] / total[2] == pytest.approx(0.5, abs=0.06)
    assert right[3] / total[3] == pytest.approx(0.1, abs=0.04)
    assert all(row["completion"] == row["answer"] for row in world.rows("test"))


@needs_sandbox
@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("x", "ok"),
        ("max(x, y) * 2", "ok"),
        ("9**9**9", "ok"),
        ("__import__('os')._exit(0)", "ok"),
        ("x +", "ok"),
        ("(" * 60, "ok"),
        ("", "invalid"),
        ("x\ny", "invalid"),
        ("x\u2028y", "invalid"),
        ("x" * 65, "invalid"),
        ("x[MASK]", "invalid"),
    ],
)
def test_any_line_can_be_judged_as_an_expression(text, status):
    row = {"id": "1", "tests": ["assert f(1, 2) == 5"]}
    score = Expression(sandbox=LocalSandbox(limits=Limits(seconds=0.5))).judge(text, row)
    assert (score.value, score.status) == (0.0, status)


def test_impossible_worlds_are_refused():
    for options in ({"shown": 3}, {"shown": 9}, {"answer_length": 11}, {"careless_at_most": 2}):
        with pytest.raises(UserError, match=next(iter(options))):
            Programs(**options)
