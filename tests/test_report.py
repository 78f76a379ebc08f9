"""Reports of synthetic run directories: what is on the page, and that nothing missing or hostile breaks it."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from unmask.describe import plain
from unmask.errors import UserError
from unmask.report import comparison_rows, write_comparison, write_report
from unmask.report.curves import Line, chart, label, ticks
from unmask.report.data import pair, read_run
from unmask.report.page import _protocol
from unmask.report.strips import board, difference, is_board, strip
from unmask.samplers import Ancestral
from unmask.schedules import Cosine, Power

SOLUTIONS = ("1234341221434321", "1243342121344312", "1324423124133142", "1342243131244213")
HOSTILE = "<script>alert('x')</script> & \"quotes\" <img src=//evil.example/x.png>"
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


class Balance(HTMLParser):
    """Checks that every tag is closed in order."""

    EMPTY = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag == "path"

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        self.words += "" if "style" in self.open else data + " "


def read_page(path: Path) -> tuple[str, str]:
    """The source of a well-formed page, and its visible words."""
    source = path.read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(source)
    assert not parser.open
    return source, re.sub(r"\s+", " ", parser.words)


def test_the_page_tells_what_happened(tmp_path):
    run = make_run(tmp_path / "run")
    page = write_report(run)
    assert page == run / "report.html"
    source, words = read_page(page)
    assert "the share of 40 test items that the model answers correctly rose from 52.5 % to 75.0 %" in words
    assert "12 items that it got wrong before are right now, and 3 that it got right are wrong now" in words
    assert "18 right both times 12 fixed 3 broken 7 wrong both times" in words
    for fact in ("sudoku", "maskgrpo", "builtin:sudoku", "seed 7", "2026-11-24", "2 min 23 s", "60", "+22.5"):
        assert fact in words
    assert "unmask train --config demo-sudoku --out run --seed 7" in words
    assert "class_path: unmask.tasks.sudoku.Sudoku" in words and "torch 2.13.0" in words
    for title in ("share of correct answers", "KL from the reference", "share of clipped tokens", "tokens per second"):
        assert title in words
    assert source.count('class="band"') == 1
    assert source.count("<article") == 4 + 2 + 6  # fixed, broken, two pairs of siblings at three steps
    assert "Step 1 " in words and "Step 31 " in words and "Step 60 " in words
    assert "missing" not in words


@pytest.mark.parametrize(("made", "task"), [(sudoku_answer, "sudoku"), (text_answer, "gsm8k")])
def test_pages_need_no_network_no_script_and_no_other_file(tmp_path, made, task):
    runs = [make_run(tmp_path / "run", steps=3, made=made, task=task)]
    for page in (write_report(runs[0]), write_comparison(runs, tmp_path / "out")):
        source, _ = read_page(page)
        assert not re.search(r"https?:|//[a-z]|\bsrc=|\bhref=|url\(|@import|<script|<link|<iframe", source)
        assert len(source) < 400_000


def test_a_report_is_reproducible_and_can_go_elsewhere(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    first, second = write_report(run), write_report(run, tmp_path / "else" / "page.html")
    assert first.read_bytes() == second.read_bytes()


def test_whatever_models_and_data_wrote_is_escaped(tmp_path):
    def hostile(item, right):
        answer = text_answer(item, right)
        answer["tokens"] = [HOSTILE if i in (0, 40) else token for i, token in enumerate(answer["tokens"])]
        return answer | {"prompt": HOSTILE, "truth": HOSTILE, "text": HOSTILE}

    run = make_run(tmp_path / "run", steps=3, made=hostile, task=HOSTILE, method="maskgrpo")
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    for row in rows:
        row["rewards"], row["status"] = {HOSTILE: None, "b": 1.0}, {HOSTILE: HOSTILE}
        row.pop("tokens" if row["copy"] else "copy")
    write_lines(run / "rollouts.jsonl", rows)
    metrics = [json.loads(line) | {f"reward/{HOSTILE}": 0.5} for line in (run / "metrics.jsonl").open()]
    write_lines(run / "metrics.jsonl", metrics)
    (run / "env.json").write_text(json.dumps({"command": HOSTILE, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}}))
    (run / "config.yaml").write_text(f"model: {json.dumps(HOSTILE)}\nmethod: m\n# {HOSTILE}\n")
    for page in (write_report(run), write_comparison([run], tmp_path / "out")):
        source, words = read_page(page)
        assert "<script" not in source and "<img" not in source
        assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quotes&quot;" in source
        assert HOSTILE in words


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "env.json", "metrics.jsonl", "rollouts.jsonl", "evaluation/before.json", "evaluation/after.json"],
)
def test_a_missing_file_is_said_and_the_rest_is_told(tmp_path, name):
    run = make_run(tmp_path / "run", steps=3)
    (run / name).unlink()
    (run / "summary.json").unlink()
    _, words = read_page(write_report(run))
    expected = {
        "evaluation/before.json": "Only the evaluation after training is here: 75.0 %.",
        "evaluation/after.json": "Only the evaluation before training is here: 52.5 %.",
    }
    assert expected.get(name, f"{Path(name).name} is missing.") in words
    assert "sudoku" in words
    assert comparison_rows([run])[0]["task"] == "sudoku"


@pytest.mark.parametrize("kept", ["config.yaml", "metrics.jsonl", "rollouts.jsonl", "summary.json", "env.json"])
def test_a_single_file_is_enough(tmp_path, kept):
    run = make_run(tmp_path / "run", steps=3)
    for path in [*run.glob("*.*"), *run.glob("evaluation/*")]:
        if path.name != kept:
            path.unlink()
    (run / "evaluation").rmdir()
    read_page(write_report(run))
    read_page(write_comparison([run], tmp_path / "out"))


def test_files_that_are_cut_off_are_read_as_far_as_they_go(tmp_path):
    run = make_run(tmp_path / "run", steps=5)
    for name in ("metrics.jsonl", "rollouts.jsonl", "evaluation/after.json"):
        text = (run / name).read_text()
        (run / name).write_text(text[: len(text) - 20])
    (run / "summary.json").unlink()
    data = read_run(run)
    assert [row["step"] for row in data.metrics] == [1, 2, 3, 4]
    assert len(data.rollouts) == 39
    _, words = read_page(write_report(run))
    assert "after.json could not be read." in words
    assert "4 of 5 steps are recorded: the run goes on, was stopped early or failed." in words


def test_rows_without_their_usual_keys_are_tolerated(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    write_lines(run / "rollouts.jsonl", [{"step": 1}, {"step": 1, "prompt": [{"role": "user", "content": "Why?"}]}, 7])
    write_lines(run / "metrics.jsonl", [{"step": 1, "rollout/reward": None}, {"step": 2, "train/loss": "a"}])
    (run / "evaluation" / "before.json").write_text(json.dumps({"score": 0.5, "generations": [{}, None]}))
    (run / "evaluation" / "after.json").write_text(json.dumps({"score": 0.5, "sampler": None}))
    _, words = read_page(write_report(run))
    assert "stayed at 50.0 %" in words


def test_a_directory_that_is_no_run_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="is no directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no run directory"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="at least one run"):
        comparison_rows([])


def test_values_that_are_not_finite_are_said(tmp_path):
    run = make_run(tmp_path / "run", steps=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "update/loss": NaN, "update/grad_norm": Infinity}\n')
    source, words = read_page(write_report(run))
    assert "Not finite at some step: update/grad_norm, update/loss." in words
    assert "nan" not in source.lower().replace("nano", "")


def test_results_that_cannot_be_compared_and_control_runs_are_said(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    path = run / "evaluation" / "before.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parser": "other", "sampler": {"steps": 4}}))
    with (run / "config.yaml").open("a") as file:
        file.write("shuffle_rewards: true\n")
    _, words = read_page(write_report(run))
    assert "Before and after are not comparable: they differ in parser, sampler." in words
    assert "maskgrpo, shuffled rewards" in words and "Control run" in words


def test_supervised_runs_are_told_by_their_loss(tmp_path):
    (tmp_path / "config.yaml").write_text("task: {class_path: Sudoku}\nscratch: {dim: 8}\nbatch: 8\nsteps: 40\n")
    rows = [{"step": step, "train/loss": 4.0 - step / 20, "train/tokens_per_second": 900.0} for step in range(1, 41)]
    rows[-1] |= {"eval/success": 0.625, "eval/low": 0.5, "eval/high": 0.74}
    write_lines(tmp_path / "metrics.jsonl", rows)
    source, words = read_page(write_report(tmp_path))
    assert "40 steps of supervised fine-tuning are recorded." in words
    assert "From the first to the last 4 steps, the loss went from 3.88 to 2.08." in words
    assert "Success on the validation split was 62.5 % at step 40" in words
    assert "training loss" in words and "rollouts.jsonl is missing" not in words
    assert 'class="dot"' in source


def judged(*correct: bool, start: int = 0, **more: Any) -> dict[str, Any]:
    return {"generations": [{"id": f"i{n + start}", "correct": c, **more} for n, c in enumerate(correct)]}


def test_items_are_paired_by_id_whatever_their_order():
    before, after = judged(True, False, True, False, False), judged(True, True, False, False, False)
    after["generations"].reverse()
    paired = pair(before, after)
    assert paired is not None
    assert (paired.both, paired.fixed, paired.broken, paired.neither) == (1, 1, 1, 2)
    assert [new["id"] for _, new in paired.between(False, True)] == ["i1"]
    assert paired.change == 0
    half = pair(judged(True, False), judged(True, True, start=1))
    assert half is not None and (len(half.pairs), half.fixed) == (1, 1)
    assert pair(judged(True), judged(True, start=5)) is None
    assert pair(None, after) is None


def test_items_without_unique_ids_are_paired_by_position():
    before, after = judged(True, False, False), judged(False, True, False)
    for result in (before, after):
        for item in result["generations"]:
            item["id"] = "same"
    paired = pair(before, after)
    assert paired is not None and (paired.fixed, paired.broken, paired.neither) == (1, 1, 1)


def test_the_interval_of_the_change_is_the_published_one_and_clusters_widen_it():
    # Bonett and Price 2012: ((f + 1) - (b + 1)) / (n + 2) -+ z sqrt((p + q - (p - q)^2) / (n + 2))
    before = [False] * 12 + [True] * 3 + [True] * 25
    after = [True] * 12 + [False] * 3 + [True] * 25
    paired = pair(judged(*before), judged(*after))
    assert paired is not None and paired.interval is not None
    p, q = 13 / 42, 4 / 42
    half = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / 42)
    # one item per cluster: the design effect is n / (n - 1)
    assert paired.interval == pytest.approx((p - q - half * math.sqrt(40 / 39), p - q + half * math.sqrt(40 / 39)))
    clustered = judged(*after)
    for place, item in enumerate(clustered["generations"]):
        item["cluster"] = f"c{place // 4}"
    wide = pair(judged(*before), clustered)
    assert wide is not None and wide.interval is not None
    assert wide.interval[1] - wide.interval[0] > 1.3 * (paired.interval[1] - paired.interval[0])


def rows_of(html: str) -> list[list[str]]:
    return [re.findall(r'<td class="(\w+)">', row) for row in re.findall(r"<tr>.*?</tr>", html)]


def test_a_strip_shows_when_each_token_appeared():
    item = {"tokens": ["a", "b", " ", "<|endoftext|>"], "revealed_at": [1, 0, 3, 1]}
    html = strip(item)
    assert rows_of(html) == [
        ["mask", "new", "mask", "mask"],
        ["new", "old", "mask", "new"],
        ["old", "old", "new", "old"],
    ]
    assert re.findall(r"<th[^>]*>(\d+)</th>", html) == ["1", "2", "4"]
    assert "∅" in html and "␣" in html


def test_long_strips_leave_steps_out_and_end_with_the_whole_answer():
    item = {"tokens": [f"w{n} " for n in range(30)], "revealed_at": list(range(30))}
    rows = rows_of(strip(item))
    assert len(rows) == 18 and "12 of 30 steps are not shown" in strip(item)
    assert "mask" not in rows[-1]
    assert sum(row.count("new") for row in rows) == 30
    answer = text_answer(0, True)
    frames = re.findall(r"<tr>.*?</tr>", strip(answer))
    assert len(frames) == 8
    assert 'class="mask"' in frames[0] and 'class="mask"' not in frames[-1]
    assert "answer is 14" in re.sub(r"<[^>]*>", "", frames[-1])


def test_answers_without_a_trace_have_no_strip():
    for item in ({}, {"tokens": ["a"]}, {"tokens": ["a"], "revealed_at": []}, {"tokens": ["a"], "revealed_at": [-1]}):
        assert "No trace" in strip(item)


def test_a_board_shows_givens_order_and_errors():
    answer = sudoku_answer(0, right=False)
    item = {**answer, "question": answer["prompt"], "ground_truth": answer["truth"]}
    assert is_board(item)
    html = board(item)
    assert html.count('"given"') == 8 and html.count("filled") == 8 and html.count(" bad") == 2
    assert html.count("--t:1.00") == 1 and html.count("--t:0.00") == 1
    clash = board({**item, "ground_truth": None})
    assert clash.count("filled bad") >= 1 and "given bad" not in clash
    assert not is_board({**item, "question": "123"})
    assert not is_board({**item, "tokens": [*answer["tokens"][:15], "x"]})
    assert is_board({**item, "tokens": [*answer["tokens"], "<|endoftext|>"]})


def test_differences_are_marked_in_order():
    html = difference(["a ", "b ", "c "], ["a ", "x<", "b ", "c "])
    assert html == 'a <span class="changed">x&lt;</span>b c '


def test_charts_cope_with_any_number_of_points():
    assert chart([Line("a", [], [])], "empty") == ""
    for values in ([0.0], [2.0, 2.0], [-1e-9, 1e12], [0.1] * 5000):
        html = chart([Line("a", list(range(1, len(values) + 1)), values)], "t")
        assert "nan" not in html and html.count("<svg") == 1
        assert len(html) < 40_000
    assert chart([Line("one", [], []), Line("two", [1], [1.0])], "t").count("--c:var(--c1)") == 2  # curve and legend


def test_numbers_and_ticks_are_short_and_round():
    assert [label(v) for v in (0.5321, 21000, 2.5e6, 0, 143.2)] == ["0.532", "21k", "2.5M", "0", "143"]
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(1, 60, 4) == [20, 40, 60]


def test_runs_are_compared_side_by_side(tmp_path):
    runs = [make_run(tmp_path / "a" / "run", steps=20), make_run(tmp_path / "b" / "run", steps=10, method="wd1")]
    page = write_comparison(runs, tmp_path / "out")
    assert page == tmp_path / "out" / "comparison.html"
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert rows == comparison_rows(runs)
    assert [row["run"] for row in rows] == ["a/run", "b/run"]
    assert [row["method"] for row in rows] == ["maskgrpo", "wd1"]
    first = rows[0]
    assert (first["before"], first["after"], first["fixed"], first["broken"]) == (0.525, 0.75, 12, 3)
    assert first["change"] == pytest.approx(0.225) and first["best_validation_step"] == 20
    source, words = read_page(page)
    assert "a/run" in words and "wd1" in words and "12 / 3" in words
    assert source.count("<svg") == 4 and "not comparable" not in words
    other = runs[1] / "evaluation" / "after.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"parser": "strict"}))
    assert "not comparable: runs differ in parser" in read_page(write_comparison(runs, tmp_path / "out"))[1]


def test_the_same_run_twice_and_one_run_can_be_compared(tmp_path):
    run = make_run(tmp_path / "run", steps=2)
    assert [row["run"] for row in comparison_rows([run, run])] == ["run", "run"]
    assert "1 run" in read_page(write_comparison([run], tmp_path / "out"))[1]


def test_the_sampler_is_told_with_the_class_and_settings_of_its_schedule():
    for schedule, told in ((Cosine(), "schedule Cosine"), (Power(3.0), "schedule Power exponent 3.0")):
        sampler = Ancestral(steps=16, schedule=schedule)
        assert told in _protocol({"sampler": {"class": "Ancestral", **plain(sampler)}})
