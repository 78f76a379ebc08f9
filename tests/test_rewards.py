"""Rewards: how answers are read, what they are worth, and what a hostile answer cannot do."""

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import UserError
from unmask.rewards import (
    NAMES,
    AdditionWorked,
    Boxed,
    CountdownSolved,
    ExactAnswer,
    Format,
    Integer,
    Math,
    Number,
    Reward,
    Score,
    SudokuSolved,
    UserReward,
    UserRewardError,
    Weighted,
    by_name,
    combine,
)
from unmask.rewards.d1 import D1Countdown, D1Math, D1Number, D1Sudoku
from unmask.rewards.puzzles import Unreadable, evaluate_expression
from unmask.rewards.text import answer_span, boxes, gold_number, read_number, visible_text

HOSTILE = [
    "",
    "0" * 16,
    "9**9**9",
    "83**18**75",
    "1" * 10_000,
    "(" * 500,
    "\x00",
    "1/0",
    '__import__("os")',
    "x" * 50,
    "1_0",
    "0x10",
    "1e3",
    "True",
    "\uff11",
    r"\boxed{" * 3000,
    "\\boxed{" + "\\frac{" * 2000 + "1" + "}" * 2000 + "}",
    "<answer>" * 5000,
    "{" * 60_000,
    "\\boxed{" + "9" * 5000 + "}",
    "\\boxed{" + "\u0663" + "}",
    "\ud800",
]
ROW = {
    "id": "one",
    "prompt": "?",
    "answer": "#### 35",
    "puzzle": "3421210003121230",
    "numbers": [4, 7, 7],
    "target": 35,
    "operands": [478, 356],
}

# Pieces that the readers treat specially, so that random texts reach their branches.
MARKUP = r"\boxed{ \fbox{ { } \{ \frac{ }{ <answer> </answer> <reasoning> </reasoning> \text{ \left \right \( \)"
SYMBOLS = r"\times $ % \% , {,} \, . = 0 1 2 3 4 5 6 7 8 9 + - * / ( ) ^ _ 1,000 million [MASK] <|eot_id|> |"
PIECES = st.sampled_from([*MARKUP.split(), *SYMBOLS.split(), *" \n\u00d7\u2212\u00a0\u00b2\uff11\u2009"])
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join))


def number(text: str, gold: object = "#### 1,000") -> tuple[float, str]:
    score = Number().judge(text, {"answer": gold})
    return score.value, score.status


def countdown(text: str, numbers=(4, 7, 7), target=35, **options) -> tuple[float, str]:
    score = CountdownSolved(**options).judge(text, {"numbers": numbers, "target": target})
    return score.value, score.status


# -- scores and their sums


def test_a_score_cannot_contradict_its_status():
    for value, status in [(math.nan, "ok"), (math.inf, "ok"), (0.5, "invalid"), (0.0, "infra_error")]:
        with pytest.raises(ValueError, match=status):
            Score(value, status)


@dataclass(frozen=True)
class Fixed(Reward):
    """Gives the scores it was made with."""

    name = "fixed"
    scores: tuple = ()

    def __call__(self, completions, rows):
        assert len(completions) == len(rows)
        return list(self.scores)


def test_a_weighted_sum_leaves_out_what_does_not_apply_and_drops_infra_errors():
    none, broken = Score.not_applicable(), Score.infra_error("down")
    first = Fixed((Score.ok(1), none, Score.ok(1), none, Score.invalid("?")))
    second = Fixed((Score.ok(0.5), Score.ok(0.5), broken, none, Score.ok(0.25)))
    judged = combine([Weighted(first, 2.0), Weighted(second)], ["x"] * 5, [{}] * 5)
    assert judged.total == [2.5, 0.5, 0.0, 0.0, 0.25]
    assert judged.keep == [True, True, False, False, True]
    assert list(judged.components) == ["fixed", "fixed-2"]


def test_a_reward_of_weight_zero_is_logged_but_drops_nothing():
    watched = Fixed((Score.infra_error("down"), Score.ok(1)))
    judged = combine([Weighted(watched, 0.0), Weighted(Fixed((Score.ok(1), Score.ok(0))))], ["x"] * 2, [{}] * 2)
    assert (judged.total, judged.keep) == ([1.0, 0.0], [True, True])
    assert combine([Weighted(watched, 0.0)], ["x"] * 2, [{}] * 2).keep == [False, False]


# -- visible text and answer span


def test_text_is_cut_at_the_first_end_token():
    assert visible_text("a<|im_end|>b<|eot_id|>c") == "a"
    assert number(r"\boxed{1000}<|eot_id|>\boxed{7}") == (1.0, "ok")
    assert ExactAnswer().judge("35</s>9", {"answer": 35}).value == 0
    assert ExactAnswer().for_tokens(["</s>"]).judge("35</s>9", {"answer": 35}).value == 1


def test_a_mask_left_in_the_visible_text_and_overlong_text_are_invalid():
    assert number(r"[MASK] \boxed{1000}") == (0.0, "invalid")
    assert number(r"\boxed{1000}<|eot_id|>[MASK]") == (1.0, "ok")
    assert number("a" * 65_536 + r"\boxed{1000}") == (0.0, "invalid")
    assert number(r"\boxed{1000}<|endoftext|>" + "a" * 65_536) == (1.0, "ok")
    assert Number().for_tokens([], ["<hole>"]).judge(r"<hole>\boxed{1000}", {"answer": "1000"}).status == "invalid"


@pytest.mark.parametrize(
    ("text", "span"),
    [
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{1} \fbox{ 2 }", "2"),
        (r"\boxed{1 \boxed{2} 3}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} \boxed{...} \boxed{ }", "1"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{1}} } \boxed{2}", "2"),
        (r"<answer>5</answer> \boxed{1}", "1"),
        ("<answer>5</answer><answer> . </answer>", "5"),
        ("<answer>5</answer> so <answer>6", "6"),
        ("<answer>5<answer>6</answer>7", "6"),
        ("</answer>5", None),
        ("it is 1000", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_non_empty_box_else_the_last_answer_tag(text, span):
    assert answer_span(text) == span


def test_boxes_are_listed_in_the_order_in_which_they_open():
    assert boxes(r"\boxed{1 \fbox{2}} \boxed{} \boxed{3}") == [r"1 \fbox{2}", "2", "3"]


def test_reading_is_fast_on_hostile_text():
    texts = [
        r"\boxed{" * 9000,
        r"\boxed{" * 4000 + "}" * 4000,
        "<answer>" * 8000,
        "</answer><answer>." * 3600,
        "{" * 65_000,
    ]
    start = time.perf_counter()
    for text in texts:
        for name in NAMES:
            by_name(name)([text], [ROW])
    assert time.perf_counter() - start < 5


# -- number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1,000}", (1, "ok")),
        (r"\boxed{\$1{,}000.00}", (1, "ok")),
        (r"\boxed{1000 apples}", (1, "ok")),
        (r"\boxed{10,00}", (0, "invalid")),
        (r"\boxed{1000 and 5}", (0, "invalid")),
        (r"\boxed{999}", (0, "ok")),
        ("it is 1000", (0, "invalid")),
        (r"\boxed{1000} \boxed{about a lot}", (0, "invalid")),
    ],
)
def test_the_examples_of_the_number_reward(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize(
    ("span", "value"),
    [
        ("\u22125", -5),
        ("- 5", -5),
        (r"-\$5", -5),
        ("$-5", -5),
        ("18\u00a0cm", 18),
        (r"18\text{ apples}", 18),
        (r"\textbf{18}", 18),
        ("x = 3 = 18", 18),
        (r"50\%", 50),
        (r"\(18\)", 18),
        ("5.", 5),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac{3}{-4}", Fraction(-3, 4)),
        (r"1,\!000", 1000),
        (r"1\,000", 1000),
        ("1\u2009000\u202f000", 1_000_000),
        ("€1,234,567.50", Fraction(2469135, 2)),
        ("20 °C", 20),
        ("9" * 30, int("9" * 30)),
    ],
)
def test_one_number_is_read_exactly_whatever_its_dress(span, value):
    assert read_number(span) == value


GUESSES = (
    r"1e3; 0x1F; 1_000; 2*9; 3 or 4; 1,5; 1000,000; 1,0000; 2 million; 3 Dozen; 1/0; 1.5/2; 1/2/3; 1 1/2; 1.5.2; (5)"
)
MORE_GUESSES = r"\frac{1}{0}; 2\frac{1}{3}; +5; 1$2; --5; step-5; ; none; 20-5; 5^2; 1%8; 1,$000; 5 \cdot 3; \frac{1}2"
OTHER_SCRIPTS = ["18\u00b2", "\uff11\uff18", "\u0663", "5 \u044f\u0431\u043b\u043e\u043a"]
TOO_LONG = ["9" * 31, "0." + "9" * 31, "5" + " " * 256]


@pytest.mark.parametrize("span", [*GUESSES.split("; "), *MORE_GUESSES.split("; "), *OTHER_SCRIPTS, *TOO_LONG])
def test_what_would_have_to_be_guessed_is_not_read(span):
    with pytest.raises(Unreadable):
        read_number(span)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("a 5\n#### 1,234", 1234),
        ("#### -7", -7),
        ("#### $3.50", Fraction(7, 2)),
        ("42", 42),
        (18.0, 18),
        (0.1, Fraction(1, 10)),
    ],
)
def test_golds_lose_commas_and_dollars_and_stay_exact(answer, gold):
    assert gold_number(answer) == gold


def test_a_row_without_a_gold_number_is_the_users_mistake_and_named():
    for row in (
        {"id": "r7", "answer": "#### many"},
        {"id": "r7"},
        {"id": "r7", "answer": True},
        {"id": "r7", "answer": None},
    ):
        with pytest.raises(UserError, match="r7"):
            Number().judge(r"\boxed{1}", row)


def test_the_faults_of_string_comparison_are_gone():
    assert number(r"\boxed{1,000}", "#### 1,000") == (1.0, "ok")
    assert number(r"\boxed{18.0}", "#### 18") == (1.0, "ok")
    assert number(r"\boxed{\$18}", "#### 18") == (1.0, "ok")
    assert number(r"\boxed{-3}", "#### -3") == (1.0, "ok")


@settings(max_examples=60, deadline=None)
@given(
    st.fractions(-(10**20), 10**20, max_denominator=10**6),
    st.sampled_from(["{}", "${}$", "  {} ", "x={}", r"\text{{{}}}"]),
)
def test_a_written_fraction_reads_as_itself(value, dress):
    assert read_number(dress.format(value)) == value


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**20), 10**20))
def test_a_written_integer_with_or_without_commas_wins(value):
    assert number(rf"\boxed{{{value:,}}}", f"#### {value}") == (1.0, "ok")
    assert Integer().judge(rf"\boxed{{{value:,}}}", {}).value == 1


# -- format, integer, boxed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<reasoning>so</reasoning><answer>1</answer>", 1),
        (r"<reasoning>so</reasoning> \boxed{1}", 1),
        ("<reasoning></reasoning><answer></answer>", 0),
        ("<reasoning> ... </reasoning><answer>1</answer>", 0),
        ("<reasoning>so</reasoning>", 0),
        ("<answer>1</answer><reasoning>so</reasoning>", 0),
        ("</reasoning>so<reasoning><answer>1</answer>", 0),
        ("<reasoning>a</reasoning><reasoning>b</reasoning><answer>1</answer>", 0),
        (r"<reasoning>\boxed{1}</reasoning>", 0),
    ],
)
def test_the_format_reward_does_not_pay_for_empty_tags(text, value):
    assert Format().judge(text, {}) == Score.ok(value)


@pytest.mark.parametrize(
    ("span", "value"),
    [("-5", 1), ("1,000", 1), ("²", 0), ("5.0", 0), ("10,00", 0), ("\uff15", 0), (r"\$5", 0), ("5 apples", 0)],
)
def test_the_integer_reward_takes_negatives_and_refuses_other_digits(span, value):
    assert Integer().judge(rf"\boxed{{{span}}}", {}).value == value


def test_the_boxed_reward_wants_something_in_the_box():
    assert [Boxed().judge(text, {}).value for text in (r"\boxed{x}", r"\boxed{}", r"\boxed{..}", "x")] == [1, 0, 0, 0]


# -- countdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{(7 \times 4) + 7}", (1, "ok")),
        (r"\boxed{7 \cdot 4 + 7 = 35.}", (1, "ok")),
        ("<answer>7 \u00d7 4 + 7.</answer>", (1, "ok")),
        (r"\boxed{\left(7*4\right)+7}", (1, "ok")),
        (r"\boxed{7*4-7}", (0.1, "ok")),
        (r"\boxed{7*5}", (0, "ok")),
        (r"\boxed{7*4+7+0}", (0, "ok")),
        (r"\boxed{7*4+7*1_0}", (0, "invalid")),
        (r"\boxed{7*(4+7}", (0, "invalid")),
        (r"\boxed{4/(7-7)}", (0, "invalid")),
        ("7*4+7", (0, "invalid")),
    ],
)
def test_countdown_wants_the_target_from_exactly_the_numbers(text, expected):
    assert countdown(text) == expected


def test_countdown_options():
    assert countdown("7*4+7", bare=True) == (1.0, "ok")
    assert countdown(r"7*4+7 \boxed{4}", bare=True) == (0.0, "ok")
    assert countdown(r"\boxed{7*4-7}", partial=0.0) == (0.0, "ok")
    assert countdown(r"\boxed{\frac{7*8}{2}}", (7, 8, 2), 28) == (1.0, "ok")
    assert countdown(r"\boxed{\frac{7}{\frac{8}{2}} }", (7, 8, 2), 2) == (0.1, "ok")
    assert countdown(r"\boxed{8 \div 2 \u2212 7}".replace(r"\u2212", "\u2212"), ("7", "8", "2"), "-3") == (1.0, "ok")


NOT_PLAIN = (
    "2**3; 7//2; 7%2; -7; +7; 2(3); (2)(3); 1_0; 1.0; 1e3; 0x1F; x; abs(7); a.b; a[0]; 07; 00; 7 if 7 else 7; 7#4"
)
BROKEN = "; (); 7+; 1 2; 7); (7; 1000000; 7,4; 7==7; 83**18**75; 9**9**9; 5/0; \uff17"


@pytest.mark.parametrize("text", [*NOT_PLAIN.split("; "), *BROKEN.split("; ")])
def test_nothing_but_plain_arithmetic_is_evaluated(text):
    with pytest.raises(Unreadable):
        evaluate_expression(text)


EXPRESSIONS = st.recursive(
    st.integers(0, 999).map(str),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})")
        | st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"{t[0]} {t[1]} {t[2]}")
    ),
    max_leaves=7,
)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS)
def test_arithmetic_agrees_with_python(text):
    literals = [int(digits) for digits in re.findall("[0-9]+", text)]
    try:
        expected = eval(re.sub("([0-9]+)", r"Fraction(\1)", text), {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(Unreadable):
            evaluate_expression(text)
    else:
        assert evaluate_expression(text) == (expected, literals)


def test_deep_nesting_and_long_expressions_are_bounded():
    assert countdown(r"\boxed{" + "(" * 60 + "7" + ")" * 60 + "}")[1] == "ok"
    assert countdown(r"\boxed{" + "(" * 6000 + "7" + ")" * 6000 + "}") == (0.0, "invalid")
    assert countdown(r"\boxed{" + "7+" * 64 + "7}") == (0.0, "invalid")


# -- sudoku

SOLVED = "3421214343121234"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SOLVED, (1, "ok")),
        ("\n".join(SOLVED[i : i + 4] for i in (0, 4, 8, 12)), (1, "ok")),
        (r"\boxed{" + SOLVED + "}", (1, "ok")),
        ("<answer>| 3 4 2 1 | 2 1 4 3 | 4 3 1 2 | 1 2 3 4 |</answer>", (1, "ok")),
        ("4321214343121234", (0, "ok")),
        ("3421214443121234", (0, "ok")),
        (SOLVED[:-1], (0, "invalid")),
        (SOLVED + "4", (0, "invalid")),
        (SOLVED.replace("3", "0"), (0, "invalid")),
        (SOLVED.replace("3", "\uff13"), (0, "invalid")),
        (f"the grid is {SOLVED}", (0, "invalid")),
    ],
)
def test_sudoku_wants_the_givens_and_all_units(text, expected):
    score = SudokuSolved().judge(text, {"puzzle": "3421210003121230"})
    assert (score.value, score.status) == expected


def test_any_solution_of_a_sudoku_counts():
    row = {"puzzle": "0" * 16}
    assert [SudokuSolved().judge(grid, row).value for grid in (SOLVED, "1234341221434321", "1234123412341234")] == [
        1,
        1,
        0,
    ]


def test_the_soft_sudoku_reward_stays_below_a_half_unless_solved():
    soft = SudokuSolved(soft=True)
    assert soft.judge(SOLVED, {"puzzle": "0" * 16}).value == 1
    assert soft.judge("1234123412341234", {"puzzle": "0" * 16}).value == 4 / 24
    assert soft.judge("1234123412341234", {"puzzle": SOLVED}).value == 0


# -- exact, addition


def test_addition_is_judged_by_its_result_and_its_form():
    judge, row = AdditionWorked().judge, {"operands": [478, 356]}
    assert (judge("14,13,08:834", row).value, judge("14,13,08:834", row).details["working"]) == (1, True)
    assert (judge("14,12,07:834", row).value, judge("14,12,07:834", row).details["working"]) == (1, False)
    assert judge("14,12,07:724", row) == Score.ok(0, answer="724", working=False)
    for form in (
        "834",
        "14,13:834",
        "14,13,08:0834",
        "14,13,08",
        "14,13,08:834:834",
        "14,13,8:834",
        "14,13,08:\uff1834",
    ):
        assert judge(form, row).status == "invalid"


# -- all of them


def test_hostile_texts_score_zero_and_never_raise():
    for name in NAMES:
        for options in ({}, {"bare": True}) if name == "countdown" else ({},):
            reward = NAMES[name](**options)
            scores = reward(HOSTILE, [ROW] * len(HOSTILE))
            values = {text[:20]: score.value for text, score in zip(HOSTILE, scores, strict=True)}
            if name not in ("boxed", "integer"):  # these two judge the form alone
                assert set(values.values()) == {0.0}, (name, values)


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_no_text_makes_a_reward_raise_or_blame_the_machinery(text):
    for name in NAMES:
        for wrapped in (text, rf"\boxed{{{text}}}", f"<reasoning>a</reasoning><answer>{text}"):
            score = by_name(name)([wrapped], [ROW])[0]
            assert score.status in ("ok", "invalid")
            assert 0 <= score.value <= 1
            json.dumps(score.details)


D1 = {D1Number(): ROW, D1Math(): ROW, D1Countdown(): ROW, D1Sudoku(): ROW | {"answer": SOLVED}}


@pytest.mark.slow
@settings(max_examples=10_000)
@given(TEXTS)
def test_ten_thousand_texts_are_judged_in_no_time(text):
    begun = time.monotonic()
    rewards = [Math(second_opinion=False) if name == "math" else by_name(name) for name in NAMES]
    for wrapped in (text, rf"\boxed{{{text}}}", f"<reasoning>a</reasoning><answer>{text}", f"```python\n{text}"):
        for reward, row in [(reward, ROW) for reward in rewards if reward.name != "code"] + list(D1.items()):
            score = reward([wrapped], [row])[0]
            assert score.status in ("ok", "invalid") and 0 <= score.value <= 1
            json.dumps(score.details)
    assert time.monotonic() - begun < 5


def test_the_readers_of_d1_are_fast_on_hostile_text():
    markup = [r"\boxed{", r"\boxed ", "\\boxed{\n", "<answer>", "<answer>```", "</answer>", "{", r"\frac1", r"\sqrt"]
    for piece in [*markup, "1" * 15 + " ", "1", "``` ", "```1", "=1 "]:
        text = piece * (65_536 // len(piece))
        for reward, row in D1.items():
            begun = time.monotonic()
            assert reward.judge(text, row).value == 0
            assert time.monotonic() - begun < 5, (reward.name, piece)


def test_a_batch_is_judged_like_its_items_in_any_order_and_thread():
    texts = [*HOSTILE, SOLVED, r"\boxed{35}", "<answer>7*4+7</answer>", "14,13,08:834"]
    for name in NAMES:
        reward, rows, seen = by_name(name), [ROW] * len(texts), []
        batch = reward(texts, rows)
        assert batch == [reward([text], [ROW])[0] for text in texts]
        assert batch == reward(texts[::-1], rows)[::-1]
        thread = threading.Thread(target=lambda reward=reward, rows=rows, seen=seen: seen.append(reward(texts, rows)))
        thread.start()
        thread.join()
        assert seen == [batch]


def test_names_lead_to_rewards_and_wrong_ones_are_explained():
    assert by_name("number") == Number()
    with pytest.raises(UserError, match=r"numbr.*number.*FILE.py:FUNCTION"):
        by_name("numbr")
    with pytest.raises(UserError, match="names no function"):
        by_name("mine.py")


def test_options_are_texts_numbers_and_truths():
    assert by_name("sudoku(soft=True)") == SudokuSolved(soft=True)
    assert by_name("code( all_or_nothing = TRUE )").all_or_nothing
    assert by_name("countdown(bare=true, partial=.5)") == CountdownSolved(bare=True, partial=0.5)
    assert by_name("math(second_opinion=False)") == Math(second_opinion=False)
    assert by_name("code(sandbox.workers=3, sandbox.limits.seconds=5)").sandbox.limits.seconds == 5
    for spec, says in (
        ("sudoku(soft=1)", "reward sudoku: option soft must be true or false, not '1'"),
        ("countdown(partial=nan)", "option partial must be a number, not 'nan'"),
        ("exact(end_tokens=x)", "with one of its options: none"),
    ):
        with pytest.raises(UserError, match=says):
            by_name(spec)


def test_rewards_and_tasks_need_no_torch():
    heavy = ("torch", "numpy", "datasets", "transformers")
    code = f"import sys, unmask.tasks, unmask.rewards; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert run.stdout.strip() == "[]"


# -- a user's own reward

USER = """
def long(completions, prompts, **columns):
    return [float(len(c) > 3) if p else None for c, p in zip(completions, prompts)]

def named(completions, answer):
    return [1.0 if c == a else 0 for c, a in zip(completions, answer)]

def renamed(texts, /, **columns):
    return [len(t) for t in texts]

def wild(completions, **columns):
    return [float("nan"), float("inf"), None, True]

def fails(completions, answer, **columns):
    return [1 / int(a) for a in answer]

def batch_only(completions, **columns):
    assert len(completions) < 2, "too many"
    return [0.0]

def short(completions, **columns):
    return [1.0]

def words(completions, **columns):
    return ["good"] * len(completions)

def nothing(completions, **columns):
    pass

number = 3
"""


@pytest.fixture
def user(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USER)
    return lambda function: by_name(f"{file}:{function}")


def test_a_user_function_has_trls_signature_and_sees_visible_text(user):
    rows = [{"prompt": "p", "answer": "yes"}, {"prompt": "", "answer": "no"}]
    texts = ["yes<|eot_id|><|eot_id|>", "no"]
    assert [s.status for s in user("long")(texts, rows)] == ["ok", "not_applicable"]
    assert [s.value for s in user("named")(texts, rows)] == [1, 1]
    assert [s.value for s in user("renamed")(texts, rows)] == [3, 2]
    assert [s.value for s in user("renamed").for_tokens(["s"])(texts, rows)] == [2, 2]
    assert user("long").label == "long"


def test_nan_and_none_of_a_user_function_are_told_apart(user):
    with pytest.warns(UserWarning, match="wild .* nan or inf for 2 of 4"):
        scores = user("wild")(["a"] * 4, [{}] * 4)
    assert [s.status for s in scores] == ["infra_error", "infra_error", "not_applicable", "ok"]


def test_a_failing_user_function_is_named_with_its_row(user):
    rows = [{"id": "a", "answer": "1"}, {"id": "b", "answer": "0"}]
    with pytest.raises(UserRewardError, match=r"function fails in .*mine.py failed on row b: ZeroDivisionError"):
        user("fails")(["x", "y"], rows)
    with pytest.raises(UserRewardError, match="on no row alone: AssertionError: too many"):
        user("batch_only")(["x", "y"], rows)
    with pytest.raises(UserRewardError, match=r"list of 2 .* not 1 values"):
        user("short")(["x", "y"], rows)
    with pytest.raises(UserRewardError, match="not NoneType"):
        user("nothing")(["x", "y"], rows)
    with pytest.raises(UserRewardError, match="'good' for row a"):
        user("words")(["x", "y"], rows)


def test_a_missing_file_or_function_fails_before_anything_runs(user, tmp_path):
    with pytest.raises(UserError, match=r"no function 'lang'; it has long, named"):
        user("lang")
    with pytest.raises(UserError, match="no function 'number'"):
        user("number")
    with pytest.raises(UserError, match=r"gone.py does not exist"):
        by_name(f"{tmp_path}/gone.py:f")
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    with pytest.raises(UserError, match=r"broken.py cannot be imported: ModuleNotFoundError"):
        UserReward(str(tmp_path / "broken.py"), "f")


# -- real outputs


@pytest.mark.data
@pytest.mark.skipif("UNMASK_DATA" not in os.environ, reason="UNMASK_DATA does not name the benchmark files")
def test_stored_generations_are_judged_as_measured():
    file = Path(os.environ["UNMASK_DATA"]) / "llada_generations" / "d1_llada8b_instruct_256.jsonl"
    found = {task: Counter() for task in ("gsm8k", "countdown", "sudoku")}
    for line in file.read_text().splitlines():
        item = json.loads(line)
        text, truth = item["generation"], item["ground_truth"]
        if item["task"] == "gsm8k":
            score = Number().judge(text, {"answer": truth})
        elif item["task"] == "countdown":
            score = CountdownSolved().judge(text, {"numbers": truth[0], "target": truth[1]})
        elif item["task"] == "sudoku":
            score = SudokuSolved().judge(text, {"puzzle": re.search("[0-4]{16}", item["question"])[0]})
        else:
            continue
        found[item["task"]][score.value if score.status == "ok" else score.status] += 1
    assert found["gsm8k"] == {1.0: 158, 0.0: 40, "invalid": 2}
    assert found["countdown"] == {1.0: 40, 0.1: 22, 0.0: 126, "invalid": 12}
    assert found["sudoku"] == {0.0: 4, "invalid": 196}
