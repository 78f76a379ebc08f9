"""Laws of masks: marginal rates, ratio schedules, golden values, and the rules that every view keeps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toys import Table, chi_square
from unmask.errors import UserError
from unmask.random import Random
from unmask.types import Answer, Canvas, View
from unmask.views import Always, Bernoulli, FadingOut, Masked, Ramp, RandomStart, score

DATA = Path(__file__).parent / "data/golden"
SCHEDULES = json.loads((DATA / "01_schedules.json").read_text())
REMASK = np.load(DATA / "01_remask.npz")


def places(rows: int, seed: int = 0) -> Random:
    return Random.root(seed, "view test").fold(torch.arange(rows))


def answer_of(valid: torch.Tensor) -> Answer:
    return Answer(torch.zeros_like(valid, dtype=torch.int64), torch.zeros_like(valid, dtype=torch.int64), valid)


def canvas_of(rows: int, prompt: int, t: int) -> Canvas:
    slots = torch.arange(prompt, prompt + t).expand(rows, t).contiguous()
    return Canvas(torch.zeros(rows, prompt + t, dtype=torch.int64), slots)


def test_ramp_matches_the_released_schedule():
    for key, values in SCHEDULES["ratio_schedule"].items():
        epochs, gamma = int(key.split("_")[0][2:]), float(key.split("gamma")[1])
        if epochs > 1:
            ratios = Ramp(gamma, cap=0.999).draw(epochs, places(2))
            assert torch.allclose(ratios, torch.tensor(values)[:, None].expand(-1, 2).float(), atol=1e-6)


@given(st.integers(2, 20), st.floats(0, 0.95))
def test_ramp_rises_from_above_gamma_to_one(epochs, gamma):
    ratios = Ramp(gamma).draw(epochs, places(1))[:, 0]
    assert bool((ratios.diff() > 0).all()) and float(ratios[0]) > gamma
    assert float(ratios[-1]) == 1


def test_one_epoch_draws_its_ratio_between_gamma_and_one():
    ratios = Ramp(0.6).draw(1, places(2000))[0]
    assert 0.6 < float(ratios.min()) < 0.61 and 0.99 < float(ratios.max()) < 1
    assert abs(float(ratios.mean()) - 0.8) < 0.01


def test_random_start_is_algorithm_1_of_mmada():
    ratios = RandomStart(steps=100).draw(5, places(500))
    assert bool((ratios[-1] == 1).all()) and float(ratios.min()) >= 0.0099
    assert bool((ratios.diff(dim=0) >= 0).all())
    tau = (ratios * 100).round()
    for row in range(500):
        start, end = float(tau[0, row]), 100
        spaced = [np.floor(n / 4 * (end - start) + start) for n in range(5)]
        assert np.abs(tau[:, row].numpy() - spaced).max() <= 1  # the hidden start may be 0 where tau shows 1
    assert float(RandomStart().draw(1, places(1000)).mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("t", [1, 2, 16, 33])
def test_fading_out_masks_the_share_it_is_asked_for(ratio, t):
    ones = torch.ones(1, t, dtype=torch.bool)
    keep = FadingOut().keep(torch.tensor([ratio]), ones)[0]
    assert float(1 - keep.mean()) == pytest.approx(ratio, abs=1e-6)
    assert bool((keep.diff() <= 0).all())
    if t > 1:
        assert float(keep[0]) == pytest.approx(min(1, 2 * (1 - ratio)), abs=1e-6) and float(keep[-1]) == 0


def test_fading_out_below_one_half_and_with_the_papers_clamp():
    ones = torch.ones(1, 400, dtype=torch.bool)
    for ratio in (0.1, 0.3, 0.45):
        level = torch.tensor([ratio])
        assert float(1 - FadingOut().keep(level, ones).mean()) == pytest.approx(ratio, abs=3 / 400)
        clamped = float(1 - FadingOut(clamp=True).keep(level, ones).mean())
        assert clamped == pytest.approx(1 / (4 * (1 - ratio)), abs=3 / 400)


def test_masks_have_the_marginals_of_their_law():
    rows, t = 20_000, 12
    valid = torch.ones(rows, t, dtype=torch.bool)
    level = torch.full((rows,), 0.7)
    fading = FadingOut().draw(level, valid, places(rows)).double()
    expected = 1 - FadingOut().keep(level[:1], valid[:1])[0].double()
    sigma = (expected * (1 - expected) / rows).sqrt()
    assert bool(((fading.mean(0) - expected).abs() <= 4.5 * sigma + 1e-12).all())
    uniform = Bernoulli().draw(level, valid, places(rows)).double()
    assert float((uniform.mean(0) - 0.7).abs().max()) < 4.5 * (0.21 / rows) ** 0.5
    counts = torch.bincount(uniform.sum(1).long(), minlength=t + 1)
    binomial = torch.distributions.Binomial(t, torch.tensor(0.7)).log_prob(torch.arange(t + 1.0)).exp() * rows
    assert abs(chi_square(counts, binomial)) < 4


def test_a_single_slot_has_no_ramp():
    for ratio in (0.1, 0.25, 0.4, 0.7, 1.0):
        keep = FadingOut().keep(torch.tensor([ratio]), torch.ones(1, 1, dtype=torch.bool))
        assert float(keep) == pytest.approx(1 - ratio)


def test_fading_out_can_be_stretched_over_the_valid_slots():
    valid = torch.arange(20)[None] < torch.tensor([[20], [8], [1]])
    keep = FadingOut(over_valid=True).keep(torch.full((3,), 0.8), valid)
    for row, length in enumerate([20, 8, 1]):
        assert float(1 - keep[row, :length].mean()) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("case", range(7))
def test_fading_out_and_uniform_masks_match_the_golden_draws(case):
    """The released draws fed in place of ours: the intended law, over the completion only."""
    about = SCHEDULES["cases"][case]
    prompt = torch.tensor(REMASK[f"c{case}_prompt_index"])
    draws = torch.tensor(REMASK[f"c{case}_R"])
    ratio, completion = about["ratio"], about["Lc"]
    rows = len(draws)
    level = torch.full((rows,), ratio)
    valid = torch.ones(rows, completion, dtype=torch.bool)
    start = draws.shape[1] - completion
    keep = FadingOut(clamp=True).keep(level, valid)
    golden = torch.tensor(REMASK[f"c{case}_ar_keep_intended"])
    golden = golden[None].expand(rows, -1) if golden.ndim == 1 else golden
    assert torch.allclose(keep, golden[:, -completion:].float(), atol=1e-6)
    mask = draws[:, start:] > keep
    assert torch.equal(mask, torch.tensor(REMASK[f"c{case}_ar_mask_intended"])[:, start:])
    assert not bool(torch.tensor(REMASK[f"c{case}_ar_mask_intended"])[prompt.expand(rows, -1)].any())
    uniform = draws[:, start:] < level[:, None]
    assert torch.equal(uniform, torch.tensor(REMASK[f"c{case}_rand_mask"])[:, start:])


LIKELIHOODS = {
    "maskgrpo": Masked(Ramp(), FadingOut()),
    "unigrpo-ramp": Masked(Ramp(), Bernoulli()),
    "diffu-grpo": Masked(Always(), Bernoulli(), hide_prompt=0.15),
    "unigrpo": Masked(RandomStart(), Bernoulli()),
    "rare": Masked(Always(0.01), Bernoulli()),
    "tail": Masked(Ramp(), FadingOut(), score_tail=True),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@given(st.integers(1, 5), st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_every_view_scores_something_and_never_what_it_shows(name, epochs, seed):
    rows, t = 8, 10
    likelihood = LIKELIHOODS[name]
    valid = torch.arange(t)[None] < torch.tensor([10, 1, 2, 3, 4, 7, 9, 10])[:, None]
    views = likelihood.draw(canvas_of(rows, 5, t), answer_of(valid), epochs, places(rows, seed))
    assert len(views) == epochs and all(len(epoch) == 1 for epoch in views)
    for (view,) in views:
        assert bool((view.weight > 0).any(1).all())
        assert bool((view.mask | (view.weight == 0)).all())
        if not likelihood.score_tail:
            assert bool((valid | (view.weight == 0)).all())
        if likelihood.hide_prompt:
            assert view.hide is not None and not bool(view.hide[:, 5:].any())


def test_views_depend_on_a_rows_place_alone():
    """Micro-batch, rank and padding of the prompt are not among the arguments of a draw."""
    likelihood, t = LIKELIHOODS["maskgrpo"], 12
    valid = torch.ones(6, t, dtype=torch.bool)
    whole = likelihood.draw(canvas_of(6, 3, t), answer_of(valid), 3, places(6))
    part = likelihood.draw(canvas_of(2, 40, t), answer_of(valid[:2]), 3, places(6)[2:4])
    for (a,), (b,) in zip(whole, part, strict=True):
        assert torch.equal(a.mask[2:4], b.mask)


def test_the_mean_field_view_hides_everything_and_prompt_tokens_at_their_rate():
    rows = 3000
    canvas = canvas_of(rows, 20, 4)
    valid = torch.ones(rows, 4, dtype=torch.bool)
    views = LIKELIHOODS["diffu-grpo"].draw(canvas, answer_of(valid), 2, places(rows))
    assert all(bool(view.mask.all()) for (view,) in views)
    hidden = [view.hide for (view,) in views]
    assert hidden[0] is not None and hidden[1] is not None
    assert not torch.equal(hidden[0], hidden[1])
    assert float(hidden[0][:, :20].double().mean()) == pytest.approx(0.15, abs=4.5 * (0.1275 / rows / 20) ** 0.5)


def test_scores_are_a_proper_law_and_blind_to_what_is_masked():
    toy = Table(3, 4, seed=2)
    canvas, x = toy.canvas(9), torch.randint(0, 3, (9, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True, True]]).expand(9, 4)
    view = View(mask, torch.tensor([[1.0, 0.0, 0.0, 2.0]]).expand(9, 4))
    scored = score(toy, canvas, x, view)
    assert bool((scored[:, 1:3] == 0).all()) and bool((scored[:, [0, 3]] < 0).all())
    total = torch.zeros(9, dtype=torch.float64)
    for token in range(3):
        other = x.clone()
        other[:, 0] = token
        changed = score(toy, canvas, other, view)
        total += changed[:, 0].exp()
        assert torch.equal(changed[:, 3], scored[:, 3])
    assert torch.allclose(total, torch.ones(9, dtype=torch.float64))


def test_settings_that_do_not_fit_are_refused():
    for wrong in (
        lambda: Ramp(1.0),
        lambda: Ramp(cap=0.5),
        lambda: RandomStart(0),
        lambda: Always(0.0),
        lambda: Masked(hide_prompt=1.0),
    ):
        with pytest.raises(UserError):
            wrong()
