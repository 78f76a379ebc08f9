"""Objectives, divergences and the way their gradient reaches the policy."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toys import Table
from unmask.errors import UserError
from unmask.objectives import K1, K2, K3, Clip, Objective, SignClip, Terms, accumulate_gradient
from unmask.objectives.gradient import MicroBatch
from unmask.random import Random
from unmask.types import Answer, Rollouts, Scored
from unmask.views import Bernoulli, Masked, Ramp, score

B, K, T = 6, 3, 4


def scored(new: torch.Tensor, advantage: list[float], **changes) -> Scored:
    _, b, t = new.shape
    record = Scored(
        new=new,
        old=new.detach(),
        ref=None,
        weight=torch.ones_like(new),
        advantage=torch.tensor(advantage, dtype=new.dtype),
        valid=torch.ones(b, t, dtype=torch.bool),
        group=torch.zeros(b, dtype=torch.int64),
        keep=torch.ones(b, dtype=torch.bool),
    )
    return replace(record, **changes)


def gradient(objective: Objective, delta: float, advantage: float) -> float:
    new = torch.full((1, 1, 1), -1.0, dtype=torch.float64, requires_grad=True)
    record = scored(new, [advantage], old=torch.full((1, 1, 1), -1.0 - delta, dtype=torch.float64))
    (slope,) = torch.autograd.grad(objective(record).numerator, new)
    return float(slope)


@given(st.floats(-3, 3), st.floats(-2, 2))
def test_clip_stops_the_gradient_exactly_where_ppo_does(delta, advantage):
    ratio = math.exp(delta)
    stopped = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
    expected = 0.0 if stopped else -ratio * advantage
    assert gradient(Clip(epsilon=0.2), delta, advantage) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.floats(-3, 3), st.floats(-2, 2))
def test_sign_clip_stops_the_gradient_in_log_space(delta, advantage):
    stopped = (advantage >= 0 and delta > 0.2) or (advantage < 0 and delta < -0.2)
    expected = 0.0 if stopped else -math.exp(delta) * advantage
    assert gradient(SignClip(epsilon=0.2), delta, advantage) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_upper_and_lower_clip_radius_may_differ():
    assert gradient(Clip(epsilon=0.2, epsilon_high=0.5), math.log(1.4), 1.0) == pytest.approx(-1.4)
    assert gradient(Clip(epsilon=0.2, epsilon_high=0.5), math.log(1.6), 1.0) == 0


@given(st.floats(-5, 5))
def test_k2_and_k3_are_positive_and_vanish_only_at_the_reference(u):
    u = torch.tensor(u, dtype=torch.float64)
    assert float(K1()(u)) == -float(u)
    for divergence in (K2(), K3()):
        assert float(divergence(u)) >= 0
        assert (float(divergence(u)) > 1e-12) == (abs(float(u)) > 2e-6) or abs(float(u)) < 1e-4


def test_gradients_of_the_divergences_on_policy():
    """As losses under the policy's own law: k1 has zero mean, k2 gives KL(new || ref), k3 KL(ref || new)."""
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reference = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(0)
    logp = logits.log_softmax(0)

    def slope(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    law = logp.exp().detach()
    estimates = {kind: slope((law * kind()(reference - logp)).sum()) for kind in (K1, K2, K3)}
    assert float(estimates[K1].abs().max()) < 1e-12
    assert torch.allclose(estimates[K2], slope((logp.exp() * (logp - reference)).sum()))
    assert torch.allclose(estimates[K3], slope((reference.exp() * (reference - logp)).sum()))


def test_the_kl_term_is_added_with_its_coefficient():
    new = torch.full((1, 1, 2), -1.0, requires_grad=True)
    record = scored(new, [0.0], ref=torch.full((1, 1, 2), -1.5))
    terms = Clip(kl=K3(0.1))(record)
    expected = math.exp(-0.5) + 0.5 - 1
    assert float(terms.numerator.detach()) == pytest.approx(2 * 0.1 * expected)
    assert float(terms.stats["kl"].detach()) == pytest.approx(2 * expected)
    assert Clip(kl=K3()).needs_reference and not Clip().needs_reference


@dataclass(frozen=True)
class SequenceClip(Objective):
    """Not separable: one ratio per row over all of its views."""

    separable = False
    needs_reference = False

    def denominator(self, weight, valid, keep):
        return keep.sum()

    def __call__(self, scored):
        delta = (scored.weight * (scored.new - scored.old)).sum((0, 2)) / scored.weight.sum((0, 2))
        loss = -torch.minimum(delta.exp() * scored.advantage, delta.exp().clamp(0.8, 1.2) * scored.advantage)
        return Terms((loss * scored.keep).sum(), {"tokens": scored.weight.sum()})


def problem(objective: Objective, seed: int = 0):
    """A toy policy, rollouts with three views, and what was scored under an older policy."""
    toy, older = Table(K, T, seed=seed), Table(K, T, seed=seed)
    with torch.no_grad():
        older.logits.add_(0.3 * torch.randn(older.logits.shape, dtype=torch.float64, generator=_generator(1)))
    x = torch.randint(0, K, (B, T), generator=_generator(2))
    canvas = toy.canvas(B)
    answer = Answer(x, torch.zeros_like(x), torch.arange(T)[None] < torch.tensor([4, 4, 3, 2, 4, 1])[:, None])
    advantage = torch.tensor([1.0, -1.0, 0.5, -0.2, 0.0, 2.0])
    keep = torch.tensor([True, True, True, True, True, False])
    rollouts = Rollouts(canvas, answer, torch.arange(B) // 3, advantage, keep, advantage)
    places = Random.root(0, "objective test").fold(torch.arange(B))
    views = [epoch[0] for epoch in Masked(Ramp(0.3), Bernoulli()).draw(canvas, answer, 3, places)]
    with torch.no_grad():
        old = torch.stack([score(older, canvas, x, view) for view in views])
        ref = torch.stack([score(older, canvas, x, view) for view in views]) * 1.1
    weight = torch.stack([view.weight for view in views])
    denominator = objective.denominator(weight, answer.valid, keep)
    return toy, rollouts, views, old, ref if objective.needs_reference else None, denominator


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def accumulate(objective: Objective, size: int, two_passes: bool | None) -> torch.Tensor:
    toy, rollouts, views, old, ref, denominator = problem(objective)
    batches = [
        MicroBatch(
            rollouts[rows],
            [view[rows] for view in views],
            old[:, rows],
            None if ref is None else ref[:, rows],
        )
        for rows in torch.arange(B).split(size)
    ]
    accumulate_gradient(
        objective,
        lambda rows, view: score(toy, rows.canvas, rows.answer.x, view),
        batches,
        denominator,
        lambda loss: loss.backward(),
        two_passes=two_passes,
    )
    assert toy.logits.grad is not None
    return toy.logits.grad


def direct(objective: Objective) -> torch.Tensor:
    """The gradient of the whole loss in one graph."""
    toy, rollouts, views, old, ref, denominator = problem(objective)
    new = torch.stack([score(toy, rollouts.canvas, rollouts.answer.x, view) for view in views])
    record = Scored(
        new=new,
        old=old,
        ref=ref,
        weight=torch.stack([view.weight for view in views]).double(),
        advantage=rollouts.advantage.double(),
        valid=rollouts.answer.valid,
        group=rollouts.group,
        keep=rollouts.keep,
    )
    (objective(record).numerator / denominator).backward()
    assert toy.logits.grad is not None
    return toy.logits.grad


@pytest.mark.parametrize("size", [1, 4, B])
@pytest.mark.parametrize(
    ("objective", "two_passes"),
    [
        (Clip(kl=K3()), False),
        (Clip(kl=K3()), True),
        (SignClip(epsilon=0.05), False),
        (SignClip(epsilon=0.05), True),
        (SequenceClip(), None),
    ],
)
def test_accumulated_gradients_equal_direct_back_propagation(objective, two_passes, size):
    assert float((accumulate(objective, size, two_passes) - direct(objective)).abs().max()) < 1e-14


def test_a_sequence_objective_in_one_pass_would_be_wrong():
    assert float((accumulate(SequenceClip(), B, False) - direct(SequenceClip())).abs().max()) > 1e-4


@pytest.mark.parametrize("objective", [Clip(), SignClip()])
def test_the_first_gradient_is_that_of_reinforce(objective):
    toy, rollouts, views, _, _, denominator = problem(objective)
    batch = MicroBatch(rollouts, views, None, None)  # old is the policy itself
    accumulate_gradient(
        objective,
        lambda rows, view: score(toy, rows.canvas, rows.answer.x, view),
        [batch],
        denominator,
        lambda loss: loss.backward(),
    )
    found = toy.logits.grad.clone()
    toy.logits.grad = None
    total = torch.zeros((), dtype=torch.float64)
    for view in views:
        logp = score(toy, rollouts.canvas, rollouts.answer.x, view)
        total = total - (view.weight * rollouts.keep[:, None] * rollouts.advantage[:, None] * logp).sum()
    (total / denominator).backward()
    assert float((found - toy.logits.grad).abs().max()) < 1e-14


def test_rows_that_are_not_kept_do_not_matter():
    for objective in (Clip(kl=K3()), SignClip()):
        toy, rollouts, views, old, ref, denominator = problem(objective)
        with_all = direct(objective)
        rows = rollouts.keep.nonzero()[:, 0]
        batch = MicroBatch(
            rollouts[rows], [view[rows] for view in views], old[:, rows], None if ref is None else ref[:, rows]
        )
        accumulate_gradient(
            objective,
            lambda rows, view, toy=toy: score(toy, rows.canvas, rows.answer.x, view),
            [batch],
            denominator,
            lambda loss: loss.backward(),
        )
        assert float((toy.logits.grad - with_all).abs().max()) < 1e-14


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="beta"):
        K3(0.0)
    with pytest.raises(UserError, match="epsilon"):
        Clip(epsilon=-0.1)
