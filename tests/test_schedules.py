"""Schedules: exact ends, monotone, reveals that compose, golden values of the released code."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import UserError
from unmask.schedules import Cosine, Linear, Power

ALL = [Linear(), Cosine(), Power(2.0), Power(0.5)]
GOLDEN = json.loads((Path(__file__).parent / "data/golden/01_schedules.json").read_text())


@pytest.mark.parametrize("schedule", ALL)
def test_ends_are_exact_and_the_masked_share_is_monotone(schedule):
    assert schedule.masked(0.0) == 0.0
    assert schedule.masked(1.0) == 1.0
    values = [schedule.masked(i / 100) for i in range(101)]
    assert values == sorted(values)


@pytest.mark.parametrize("schedule", ALL)
@given(st.floats(0.05, 1), st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_reveals_compose(schedule, a, first, second):
    b, c = a * first, a * first * second
    stay = (1 - schedule.reveal(a, b)) * (1 - schedule.reveal(b, c))
    assert stay == pytest.approx(1 - schedule.reveal(a, c), rel=1e-9)


@pytest.mark.parametrize(
    ("key", "schedule"),
    [("linear", Linear()), ("cosine", Cosine()), ("pow2", Power(2.0)), ("pow0.5", Power(0.5))],
)
def test_masked_shares_match_the_released_code(key, schedule):
    for steps in (4, 8, 12):
        for n, value in enumerate(GOLDEN["noise_schedules"][f"{key}_T{steps}"]):
            assert schedule.masked(1 - n / steps) == pytest.approx(value, abs=2e-6)


def test_reveal_probability_is_one_at_the_end():
    assert all(schedule.reveal(0.3, 0.0) == 1.0 for schedule in ALL)
    assert Linear().reveal(1.0, 0.5) == 0.5
    assert Cosine().reveal(1.0, 0.5) == pytest.approx(1 - math.sin(math.pi / 4))


def test_a_power_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match="exponent"):
        Power(0.0)
