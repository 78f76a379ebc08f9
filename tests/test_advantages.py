"""Advantages: sums, relations, invariances, golden values, and rows that take no part."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.advantages import Centered, LeaveOneOut, Ranked, Standardized

ALL = [Centered(), Standardized(), LeaveOneOut(), Ranked(), Ranked(then=Standardized())]
GOLDEN = json.loads((Path(__file__).parent / "data/golden/01_schedules.json").read_text())
groups = st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 3.0]), min_size=4, max_size=4), min_size=1)


def all_kept(reward: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(reward, dtype=torch.bool)


@pytest.mark.parametrize("advantage", ALL)
@given(groups)
def test_advantages_of_siblings_sum_to_zero(advantage, rewards):
    reward = torch.tensor(rewards, dtype=torch.float64)
    assert float(advantage(reward, all_kept(reward)).sum(1).abs().max()) < 1e-9


@given(groups)
def test_leave_one_out_is_the_centred_one_scaled(rewards):
    reward = torch.tensor(rewards, dtype=torch.float64)
    keep = all_kept(reward)
    others = torch.stack([reward[:, i] - reward[:, [j for j in range(4) if j != i]].mean(1) for i in range(4)], 1)
    assert torch.allclose(LeaveOneOut()(reward, keep), others, atol=1e-12)
    assert torch.allclose(LeaveOneOut()(reward, keep), Centered()(reward, keep) * 4 / 3, atol=1e-12)


@given(groups)
def test_ranks_do_not_see_the_scale_and_share_ties(rewards):
    reward = torch.tensor(rewards, dtype=torch.float64)
    keep = all_kept(reward)
    assert torch.allclose(Ranked()(reward, keep), Ranked()(reward**3 * 7 - 2, keep))
    binary = (reward > 0.3).double()
    assert torch.allclose(Ranked()(binary, keep), Centered()(binary, keep) * 4 / (2 * 3), atol=1e-12)


def test_equal_rewards_give_exactly_zero():
    for value in (0.1, 1 / 3, 7e8):
        reward = torch.full((3, 6), value)
        for advantage in ALL:
            assert bool((advantage(reward, all_kept(reward)) == 0).all())


def test_standardized_matches_the_released_code():
    golden = GOLDEN["advantage"]
    reward = torch.tensor(golden["rewards"]).view(-1, golden["G"])
    found = Standardized(golden["eps"])(reward, all_kept(reward)).flatten()
    assert torch.allclose(found, torch.tensor(golden["out"]), atol=1e-5)


@pytest.mark.parametrize("advantage", ALL)
def test_a_row_that_is_not_kept_changes_its_siblings_only_by_its_absence(advantage):
    reward = torch.tensor([[0.0, 1.0, 0.3, float("nan")]])
    keep = torch.tensor([[True, True, True, False]])
    found = advantage(reward, keep)
    assert float(found[0, 3]) == 0
    assert torch.allclose(found[:, :3], advantage(reward[:, :3], keep[:, :3]))


@pytest.mark.parametrize("advantage", ALL)
def test_a_group_of_which_nothing_or_one_is_left_gives_zero(advantage):
    reward = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    keep = torch.tensor([[False, False, False], [False, True, False]])
    assert bool((advantage(reward, keep) == 0).all())
