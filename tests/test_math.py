"""Answers that are mathematics: the rules, the second opinion, and what neither can be made to do."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.cli import main
from unmask.errors import UserError
from unmask.evaluation import rescore
from unmask.rewards import Math, by_name, verifier
from unmask.rewards import math as rules
from unmask.rewards.d1 import D1Math, normal_form, same_text
from unmask.rewards.math import agreement, is_final, rational
from unmask.rewards.verifier import Verdict, verify
from unmask.stored import read_generations
from unmask.tasks import Math500, MathTask
from unmask.tasks.math import INSTRUCTIONS

DATA = Path(__file__).parent / "data"
needs_data = pytest.mark.skipif("UNMASK_DATA" not in os.environ, reason="UNMASK_DATA does not name the benchmark files")
needs_opinion = pytest.mark.skipif(not verifier.installed(), reason="math-verify is not installed: unmask[math]")

BY_RULES = Math(second_opinion=False)


def judged(answer: str, gold: str) -> tuple[float, str, str | None]:
    score = Math().judge(rf"\boxed{{{answer}}}", {"answer": gold})
    return score.value, score.status, score.details.get("decided_by") or score.details.get("reason")


# -- the rules, each with what it must and must not hold for equal


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"$\left( 3, \frac{\pi}{2} \right)$", r"(3,\frac\pi2)"),
        (r"\(3\sqrt{13}\)", r"3\sqrt{13}"),
        (r"90^{\circ}", "90"),
        ("90°", r"90^\circ"),
        (r"90 \text{ degrees}", r"90^\circ"),
        (r"\dfrac{1}{2}.", r"\frac12"),
        (r"\tfrac 59", r"\frac{5}{9}"),
        (r"\cfrac{270}7", r"\frac{270}{7}"),
        (r"\frac{\sqrt3}2", r"\frac{\sqrt{3}}{2}"),
        (r"\frac\sqrt3 2", r"\frac{\sqrt{3}}{2}"),
        (r"\frac{\frac12}3", r"\frac{\frac{1}{2}}{3}"),
        (r"x \leq 3", r"x\le3"),
        (r"x \geq 3 \neq y", r"x\ge3\ne y"),
        ("4210_5", "4210_{5}"),
        ("x^{2}+1", "x^2 + 1"),
        ("Evelyn", r"\text{Evelyn}"),
        (r"\textbf{(C)}", r"\text{(C)}"),
        (r"864 \mbox{ inches}^2", "864"),
        (r"5.4~\text{cents}", "5.4"),
        (r"12\pi\mathrm{cm}^{3}", r"12\pi"),
        (r"\$18.90", "18.90"),
        (r"50\%", "50"),
        (r"\$32{,}348", r"32,\!348"),
        ("10080", r"10,\!080"),
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
        (r"10\,080", "10,080"),
        ("\u22122", "-2"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\quad 7 \; ", "7"),
        (r"\{1\pm\sqrt5,-2\}", r"\left\{1 \pm \sqrt{5}, -2\right\}"),
    ],
)
def test_two_spellings_are_one_string(answer, gold):
    assert agreement(answer, gold) == agreement(gold, answer) == "strings"


@pytest.mark.parametrize(
    ("answer", "gold", "rule"),
    [
        ("5", "x=5", "prefix"),
        ("y = 2x + 3", "2x+3", "prefix"),
        ("[-2,7]", r"x \in [-2,7]", "prefix"),
        ("x=.5", r"\frac12", "rationals"),
        ("x=2,1", "1,2", "lists"),
        ("0.5", r"\frac{1}{2}", "rationals"),
        ("-1/2", r"\frac{1}{-2}", "rationals"),
        (r"-\frac{35}{9}", r"\frac{-35}{9}", "rationals"),
        (r"137 \frac{1}{2}", "137.5", "rationals"),
        (r"-1\frac45", "-9/5", "rationals"),
        ("007", "7.0", "rationals"),
        ("10", "10.", "strings"),
        (".35625", "0.35625", "rationals"),
        (r"\frac{2}{4}", "0.50", "rationals"),
        ("7, 3,5", "3, 5, 7", "lists"),
        (r"-2,\frac12", "0.5,-2", "lists"),
        (r"(\frac{1}{2}, 3)", "(0.5,3.0)", "lists"),
        ("(-oo,2/4]", "(-oo, 0.5]", "lists"),
        (r"\{2,1\}", r"\{1, 2\}", "lists"),
        (r"(5\text{ cm}, 2)", "(5,2.0)", "lists"),
    ],
)
def test_further_rules_are_named(answer, gold, rule):
    assert agreement(answer, gold) == agreement(gold, answer) == rule


UNEQUAL = r"""
    1 2 | 12 ; 2 1/3 | 7 ; x=5 | y=5 ; xy=5 | 5 ; 5 | 5=x ; 1,1,2 | 1,2 ; (1,2) | (2,1) ; (1,2) | [1,2] ; (1,2] | (1,2)
    (1,2) | 1,2 ; \{1,2\} | 1,2 ; 1,2 | 1,2,3 ; 1/0 | \frac{2}{0} ; 3, 500 | 3500 ; 1,5 | 15 ; 0.333 | \frac13
    \text{Evelyn}\text{Navin} | \text{Evelyn} ; evelyn | Evelyn ; 101_2 | 101 ; 5 | -5 ; \frac{1}{2}3 | 0.5
    2\frac{-1}{3} | 5/3 ; (a+5)(b+2) | (b+2)(a+5) ; (0,9)\cup(9,36) | (0,36) ; \sqrt[3]{2} | \sqrt{2} ; 5 cm | 5
    1e3 | 1000 ; x^{10} | x^10 ; \sin x | \cos x ; 50\% | 0.5 ; \frac{1}{2 | \frac{1}{2} ; (1,2 | (1,2)
    3 \text{ or } 4 | 3 ; ARABIC | 5
""".replace("ARABIC", "\u0665")


@pytest.mark.parametrize("pair", [pair for line in UNEQUAL.strip().splitlines() for pair in line.split(" ; ")])
def test_what_no_rule_covers_is_unequal(pair):
    answer, gold = pair.strip().split(" | ")
    assert agreement(answer, gold) is None and agreement(gold, answer) is None
    assert BY_RULES.judge(rf"\boxed{{{answer}}}", {"answer": gold}).value == 0


@settings(max_examples=80)
@given(
    st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6),
    st.sampled_from([r"\frac{%d}{%d}", r"\dfrac{%d} {%d}", "%d/%d", r"$\frac{%d}{%d}$", r"x = \tfrac{%d}{%d}"]),
)
def test_a_written_fraction_is_its_value(value, dress):
    text = dress % (value.numerator, value.denominator)
    gold = rf"\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}"
    assert agreement(text, gold) is not None
    whole, part = divmod(abs(value), 1)
    mixed = rf"{'-' * (value < 0)}{whole}\frac{{{part.numerator}}}{{{part.denominator}}}"
    assert rational(mixed) == value


@settings(max_examples=80)
@given(st.integers(-(10**15), 10**15), st.integers(0, 10**6))
def test_a_written_decimal_is_its_value(whole, part):
    text = f"{whole}.{part:06d}"
    assert rational(text) == Fraction(text)
    assert agreement(f"{whole:,}", str(whole)) == "strings"


@settings(max_examples=80)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_lists_are_multisets_and_tuples_are_ordered(members, rng):
    shuffled = rng.sample(members, len(members))
    text, other = (",".join(map(str, one)) for one in (members, shuffled))
    assert agreement(other, text) in ("strings", "lists") and agreement(rf"\{{{other}\}}", rf"\{{{text}\}}")
    assert bool(agreement(f"({other})", f"({text})")) == (members == shuffled)
    assert agreement(f"{text},{members[0]}", text) is None


# Pieces that the rules treat specially.
MARKUP = (
    r"\frac \dfrac \sqrt { } [ ] ( ) \{ \} \in ^ _ ^{2} \pi \text{ \text{cm} \left \right \cup \begin{pmatrix} \circ"
)
SYMBOLS = r", = x x= 1 2 10 .5 / - + $ % \! \\ \, ~ & ^\circ _{8} ! 1,000 {,} \boxed{ ."
PIECES = [*MARKUP.split(), *SYMBOLS.split(), " "]
TEXTS = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))


@settings(max_examples=300)
@given(TEXTS, TEXTS)
def test_the_rules_are_total_symmetric_and_hold_a_text_for_equal_to_itself(one, two):
    assert agreement(one, one) == "strings"
    assert agreement(one, two) == agreement(two, one)
    assert is_final(one, two) in (True, False)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(TEXTS, TEXTS)
def test_ten_thousand_texts_are_judged_by_the_rules_in_no_time(one, two):
    begun = time.monotonic()
    assert agreement(one, one) == "strings" and agreement(one, two) == agreement(two, one)
    for text in (one, rf"\boxed{{{one}}}", f"<answer>{one}"):
        assert BY_RULES.judge(text, {"answer": "1"}).status in ("ok", "invalid")
        D1Math().judge(text, {"answer": two})
    assert time.monotonic() - begun < 2


def test_the_longest_answers_are_compared_in_no_time():
    begun = time.monotonic()
    for piece in [*PIECES, "(1,", "{,", "\\frac1", r"\text{a}", " ", "1,000", ",!"]:
        text = (piece * 1024)[:1024]
        for answer in (text, text[:-1] + "}", "1" + text[1:]):
            agreement(answer, "1,2")
            agreement(answer, answer + "1")
            is_final(answer, "1")
    assert time.monotonic() - begun < 20


# -- statuses


def test_statuses_say_who_failed():
    row = {"answer": r"\frac12"}
    assert BY_RULES.judge(r"so \boxed{0.5}", row).details == {"answer": "0.5", "decided_by": "rationals"}
    assert BY_RULES.judge(r"<answer>$\frac{1}{2}$</answer>", row).value == 1
    for text in ("0.5", r"\boxed{}", r"\boxed{" + "1" * 1025 + "}", r"\boxed{0.5} [MASK]"):
        score = BY_RULES.judge(text, row)
        assert (score.value, score.status) == (0.0, "invalid")
    assert BY_RULES.judge(r"\boxed{0.5}\boxed{1}", row).status == "ok"  # the last box counts
    for gold in (None, "", "$ $", [1], True):
        with pytest.raises(UserError, match="row 7 needs a column 'answer'"):
            BY_RULES.judge(r"\boxed{1}", {"id": 7, "answer": gold})
    assert BY_RULES.judge(r"\boxed{18}", {"answer": 18}).value == 1


# -- the second opinion


@needs_opinion
@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\frac{1}{\sqrt3}", r"\frac{\sqrt{3}}{3}"),
        ("x^2+2x", "2x + x^2"),
        ("-q+p", "p - q"),
        ("10000000000", "10^{10}"),
        ("5 apples", "5"),
        ("(b+2)(a+5)", "(a+5)(b+2)"),
    ],
)
def test_the_second_opinion_finds_what_no_rule_does(answer, gold):
    assert BY_RULES.judge(rf"\boxed{{{answer}}}", {"answer": gold}).value == 0
    assert judged(answer, gold) == (1.0, "ok", "math-verify")


@needs_opinion
@pytest.mark.parametrize(
    ("answer", "gold"), [("7", "6"), ("50", r"0.5\%"), ("0.5", r"50\%"), ("6 or 7", "6"), ("(2,1)", "(1,2)")]
)
def test_the_second_opinion_is_not_a_rubber_stamp(answer, gold):
    assert judged(answer, gold) == (0.0, "ok", "math-verify")


SLOW = r"5! 9^{9^9} 9^9^9 9**9**9 2^(3^4) (x+1)^{5000} 9^{-5000} \int_0^1{x}dx \sum_{n=1}^9{n} \prod{n}"
FINAL = [*SLOW.split(), "x" * 257, "1" * 31, "(" * 33, "{" * 33, "6,7", "101_2", "seat", "x=6"]


@pytest.mark.parametrize("answer", FINAL)
def test_what_is_slow_or_known_to_be_wrong_is_not_asked_about(answer):
    gold = {"101_2": "101_3", "seat": r"\text{east}", "x=6": "y=6"}.get(answer, "6")
    assert is_final(answer, gold)
    assert Math().judge(rf"<answer>{answer}</answer>", {"answer": gold}).details["decided_by"] == "rules"
    assert not is_final("7", "6") and not is_final(r"\sum n", r"\sum m")


@needs_opinion
def test_an_answer_that_takes_too_long_ends_its_process_and_nothing_else():
    slow = r"\boxed{(a+b+c+d+e+f+g)^{99}}"
    texts, rows = [r"\boxed{\frac{1}{\sqrt3}}", slow, r"\boxed{7}"], [{"answer": r"\frac{\sqrt3}{3}"}] * 3
    Math()(texts[:1], rows[:1])  # a process is ready
    begun = time.monotonic()
    scores = Math()(texts, rows)
    assert time.monotonic() - begun < 15
    assert [score.value for score in scores] == [1, 0, 0]
    assert [score.status for score in scores] == ["ok", "invalid", "ok"]
    assert scores[1].details["reason"] == "timeout" and scores[1].details["decided_by"] == "math-verify"
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(Math()(texts[::-1], rows)[::-1])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [scores] * 2


@needs_opinion
def test_a_batch_is_judged_like_its_items():
    texts = [rf"\boxed{{{answer}}}" for answer in ("1+x", "x+1", "2x", "(x+1)", "x", "")]
    rows = [{"answer": "x+1"}] * 6
    assert Math()(texts, rows) == [Math()([text], rows[:1])[0] for text in texts]


def places() -> list[verifier._Process]:
    """The processes of the pool; all of them are idle here."""
    return [process for process in verifier._pool()._processes if process.alive]


@needs_opinion
def test_a_process_that_died_while_idle_is_replaced_and_its_pair_is_not_blamed():
    assert verify([("2", "1+1")]) == [Verdict(equal=True)]
    for process in places():
        process._process.kill()
        process._process.wait()
    assert verify([("2", "1+1"), ("3", "1+1")]) == [Verdict(equal=True), Verdict(equal=False)]


@needs_opinion
def test_a_pool_that_cannot_start_is_an_infra_error(monkeypatch):
    monkeypatch.setattr(verifier, "_pools", {})
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    score = Math().judge(r"\boxed{7}", {"answer": "6"})
    assert score.status == "infra_error" and "cannot be started" in score.details["reason"]
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert "does not start" in Math().judge(r"\boxed{7}", {"answer": "6"}).details["reason"]
    assert Math().judge(r"\boxed{6}", {"answer": "6"}).value == 1  # the rules need no process


@needs_opinion
def test_a_process_that_a_pair_crashes_is_the_pairs_doing(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho ready\nread line\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(verifier, "_pools", {})
    monkeypatch.setattr(sys, "executable", str(fake))
    score = Math().judge(r"\boxed{7}", {"answer": "6"})
    assert (score.status, score.details["reason"]) == ("invalid", "crash")


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.05)
                continue
        return True
    return False


@needs_opinion
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_nothing_is_left_running(how):
    code = (
        "import os, signal, time\nfrom unmask.rewards import verifier\nverifier.verify([('2', '1+1')])\n"
        "[process] = verifier._pool()._processes\nprint(process._process.pid, flush=True)\n"
        + ("" if how == "exit" else "os.kill(os.getpid(), signal.SIGKILL)\n")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if how == "exit" else -signal.SIGKILL), done.stderr
    assert gone(int(done.stdout), 20)


@needs_opinion
@settings(max_examples=25)
@given(TEXTS)
def test_no_answer_makes_the_second_opinion_fail_or_hang(text):
    begun = time.monotonic()
    assert Math().judge(rf"<answer>{text}", {"answer": "6"}).status in ("ok", "invalid")
    assert time.monotonic() - begun < 15  # a second, and a new process


# -- without the extra


def test_without_the_extra_the_parser_says_so(monkeypatch):
    monkeypatch.setattr(rules, "installed", lambda: False)
    monkeypatch.setattr("unmask.tasks.math.installed", lambda: False)
    assert MathTask().parser == "unmask-rules" and MathTask().metric() == Math()
    score = by_name("math").judge(r"\boxed{x^2+2x}", {"answer": "2x+x^2"})
    assert (score.value, score.details["decided_by"]) == (0, "rules")
    with pytest.raises(UserError, match=r"pip install 'unmask\[math\]'"):
        MathTask().metric("unmask")
    monkeypatch.undo()
    assert MathTask().metric("unmask-rules") == BY_RULES


# -- the tasks

ROWS = [
    {
        "problem": "What is half of one?",
        "solution": r"Half of one is $\boxed{\frac12}$.",
        "level": 1,
        "subject": "A",
    },
    {"problem": "Solve $x-5=0$.", "solution": "It is five.", "answer": "x=5", "level": "Level 2", "type": "B"},
    {"problem": "Name the roots of $(x-1)(x-2)$.", "solution": r"They are $\boxed{1,2}$.", "answer": "1,2"},
]


def data_file(folder: Path, *rows: dict) -> str:
    file = folder / "math.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_rows_ask_for_a_box_and_their_demonstrations_win_every_reward(tmp_path):
    file = data_file(tmp_path, *ROWS)
    for protocol, prefill in (("unmask", ""), ("d1", "<reasoning>"), ("maskgrpo", "<reasoning>")):
        task = MathTask(data=file, protocol=protocol)
        rows = task.rows("test")
        assert [row["answer"] for row in rows] == [r"\frac12", "x=5", "1,2"]
        assert [row["category"] for row in rows] == ["A", "B", None]
        for row in rows:
            assert row["prompt"][0] == {"role": "user", "content": f"{INSTRUCTIONS}\n\n{row['problem']}"}
            assert [turn["content"] for turn in row["prompt"][1:]] == ([prefill] if prefill else [])
            assert not prefill or not row["completion"].startswith(prefill)
        texts = [row["completion"] for row in rows]
        assert all(score.value == 1 for w in task.rewards() for score in w.reward(texts, rows))
    assert [(w.reward.name, w.weight) for w in task.rewards()] == [("math", 2.0), ("boxed", 0.5), ("format", 0.5)]


def test_training_rows_are_split_and_math500_is_a_test_set(tmp_path):
    task = MathTask(data=data_file(tmp_path, *ROWS), validation_share=0.3)
    assert (len(task.rows("train")), len(task.rows("validation")), len(task.rows("test"))) == (2, 1, 3)
    assert list(task.sources("train")) == ["math.jsonl"]
    test = Math500(data=task.data)
    assert [row["id"] for row in test.rows("test")] == [f"math500-test-{n}" for n in (1, 2, 3)]
    for split in ("train", "validation"):
        with pytest.raises(UserError, match="task math500 has no split"):
            test.rows(split)
    with pytest.raises(UserError, match="math500 needs your copy of the data: name it with --data"):
        Math500().rows("test")
    with pytest.raises(UserError, match="task math has no protocol 'd2'; it has unmask, d1, maskgrpo"):
        MathTask(protocol="d2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"problem": None}, "field 'problem' must be a text"),
        ({"solution": " "}, "field 'solution' must be a text"),
        ({"answer": None, "solution": "no box"}, "no field 'answer' and no box in 'solution'"),
        ({"answer": ""}, "field 'answer' must be a text"),
        ({"answer": ["1"]}, "field 'answer' must be a text"),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_its_field(tmp_path, change, says):
    with pytest.raises(UserError, match=f"math.jsonl, row 2: {says}"):
        MathTask(data=data_file(tmp_path, ROWS[0], ROWS[1] | change)).rows("test")


# -- as d1 reads them


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"\boxed{1}\boxed{2}", "2", True),  # the last one counts
        (r"\boxed{\frac{1}{2}}", r"\frac12", True),
        (r"\boxed{1/2}", r"\frac{1}{2}", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{0.25}", r"\frac{1}{4}", False),
        (r"\boxed{x = 5}", "5", True),
        (r"\boxed{abc=5}", "5", False),  # a longer name stays
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{5 \text{ cm}}", "5", True),
        (r"\boxed{5\text{cm}}", "5", False),
        (r"\boxed{3,1}", "1,3", False),
        (r"\boxed{1{,}000}", "1,000", False),
        (r"\boxed{1,\!000}", "1,000", True),
        (r"\boxed{90^\circ}", "90", True),
        (r"\boxed{.5}", r"\frac{1}{2}", True),
        (r"\boxed 5$ it is", "5", True),
        (r"\boxed{} <answer>5</answer>", "5", True),
        (r"\boxed{5 <answer> 5 </answer>", "5", True),
        ("5", "5", True),  # a text without a box is taken whole
        ("it is 5", "5", False),
        ("<answer>5</answer>", "5", False),
        (r"\boxed{1}<|eot_id|>\boxed{2}", "2", True),  # what stands behind the end counts
        (r"\boxed{\sqrt}", r"\sqrt", True),  # no normal form: compared as they are
        (r"\boxed{1/x}", "1 /x", False),
        (r"\boxed{\frac1}", r"\frac1", True),
        (r"\fbox{5}", "5", False),
        ("", "5", False),
        (r"\boxed{", "5", False),
    ],
)
def test_answers_are_read_as_d1_reads_them(text, gold, right):
    assert D1Math().judge(text, {"answer": gold}).value == right


def test_the_string_rule_step_by_step():
    for text, form in [
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\frac{72}1", r"\frac{72}1"),
        (r"\sqrt 3", r"\sqrt{}3"),
        ("k = 3 ", "3"),
        ("abc = 3 ", "abc=3"),
        ("-3/4", r"\frac{-3}{4}"),
        ("03/4", "03/4"),
        ("a {.5}", "a{0.5}"),
        ("1\n0", "10"),
        (r"\frac1\frac12", r"\frac1\frac12"),
    ]:
        assert normal_form(text) == form
    for text in (r"1 \text{ a} \text{ b}", r"\sqrt", r"\frac", "a/b", r"\sqrt\sqrt3", r"\frac\frac12"):
        with pytest.raises(ValueError):
            normal_form(text)
        assert same_text(text, text) and not same_text(text, text + " ")


# -- real data


@pytest.mark.data
@needs_data
def test_all_golds_and_reference_solutions_of_math500_win_by_the_rules():
    rows = Math500(data=str(Path(os.environ["UNMASK_DATA"]) / "math" / "math500_test.jsonl")).rows("test")
    assert len(rows) == 500
    assert all(agreement(row["answer"], row["answer"]) == "strings" for row in rows)
    for texts in ([rf"\boxed{{{row['answer']}}}" for row in rows], [row["solution"] for row in rows]):
        assert [score.value for score in BY_RULES(texts, rows)] == [1] * 500
    golds = [row["answer"] for row in rows]
    others = Counter(agreement(golds[i], golds[(i + 1) % 500]) for i in range(500))
    assert others[None] > 480


@pytest.mark.data
@needs_data
def test_real_generations_are_judged_as_measured(tmp_path):
    file = Path(os.environ["UNMASK_DATA"]) / "llada_generations" / "d1_llada8b_instruct_256.jsonl"
    stored = read_generations(file)
    found = rescore(stored, Math500(), "unmask-rules")
    assert Counter((item["status"], item["correct"]) for item in found["generations"]) == {
        ("ok", True): 71,
        ("ok", False): 124,
        ("invalid", False): 5,
    }
    assert rescore(stored, Math500(), "d1")["score"] == 68 / 200  # counted with d1's own evaluation code
    out = tmp_path / "out.json"
    assert main(["eval", "--task", "math500", "--generations", str(file), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["parser"] == Math500().parser and result["score"] == 71 / 200 and result["infra_errors"] == 0
