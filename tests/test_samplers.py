"""Samplers against exact laws on a toy that can be enumerated, and against the rules that all of them keep."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toys import Table, answer_number, chi_square
from unmask.errors import UserError
from unmask.random import Random
from unmask.samplers import Ancestral, Entropy, Guided, LeftToRight, LowConfidence, Margin, RandomOrder, TopProb
from unmask.samplers.base import draw, transfer_counts, truncate
from unmask.schedules import Cosine, Linear
from unmask.types import Canvas, Denoiser, Law

K, T = 3, 4
TOY = Table(K, T, seed=1)
ALL = [LowConfidence, TopProb, Entropy, Margin, RandomOrder, LeftToRight, Ancestral]


def places(rows: int, seed: int = 0) -> Random:
    return Random.root(seed, "sampler test").fold(torch.arange(rows))


def probabilities(state: tuple[int, ...]) -> torch.Tensor:
    """Conditionals [t k] of the toy at one state."""
    return TOY.logits.detach()[int(TOY.state(torch.tensor([state])))].softmax(-1)


def exact_law(choices) -> torch.Tensor:
    """Law of the finished answer when `choices(step, state)` gives (probability, slots to open) pairs per step."""
    law = {(K,) * T: 1.0}
    for step in itertools.count():
        if not any(K in state for state in law):
            break
        after: dict[tuple[int, ...], float] = {}
        for state, weight in law.items():
            p = probabilities(state)
            for chance, slots in choices(step, state):
                for tokens in itertools.product(range(K), repeat=len(slots)):
                    new, mass = list(state), weight * chance
                    for slot, token in zip(slots, tokens, strict=True):
                        new[slot] = token
                        mass *= float(p[slot, token])
                    after[tuple(new)] = after.get(tuple(new), 0.0) + mass
        law = after
    result = torch.zeros(K**T, dtype=torch.float64)
    for state, mass in law.items():
        result[int(answer_number(torch.tensor([state]), K))] = mass
    assert float(result.sum()) == pytest.approx(1)
    return result


def open_slots(state: tuple[int, ...]) -> list[int]:
    return [slot for slot, token in enumerate(state) if token == K]


def assert_law(sampler, choices, rows: int = 60_000) -> None:
    x = sampler(TOY, TOY.canvas(rows), places(rows)).x
    counts = torch.bincount(answer_number(x, K), minlength=K**T)
    assert abs(chi_square(counts, exact_law(choices) * rows)) < 4.5


def test_random_order_draws_from_its_exact_law():
    def choices(step, state):
        subsets = list(itertools.combinations(open_slots(state), 2))
        return [(1 / len(subsets), subset) for subset in subsets]

    assert_law(RandomOrder(steps=2), choices)


def test_left_to_right_draws_from_its_exact_law():
    assert_law(LeftToRight(steps=4), lambda step, _: [(1.0, [step])])


def test_top_prob_draws_tokens_from_the_law_that_is_scored():
    def choices(step, state):
        best = sorted(open_slots(state), key=lambda slot: -float(probabilities(state)[slot].max()))
        return [(1.0, best[:2])]

    assert_law(TopProb(steps=2), choices)


def test_entropy_and_margin_choose_the_slots_they_say():
    def entropy(step, state):
        p = probabilities(state)
        return [(1.0, sorted(open_slots(state), key=lambda i: -float((p[i] * p[i].log()).sum()))[:1])]

    def margin(step, state):
        top = probabilities(state).topk(2, -1).values
        return [(1.0, sorted(open_slots(state), key=lambda i: float(top[i, 1] - top[i, 0]))[:1])]

    assert_law(Entropy(steps=4), entropy, 20_000)
    assert_law(Margin(steps=4), margin, 20_000)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_ancestral_draws_from_the_posterior_of_the_masking_process(schedule):
    steps = 3

    def choices(step, state):
        reveal = schedule.reveal(1 - step / steps, 1 - (step + 1) / steps)
        slots = open_slots(state)
        for size in range(len(slots) + 1):
            for subset in itertools.combinations(slots, size):
                chance = reveal**size * (1 - reveal) ** (len(slots) - size)
                if chance > 0:
                    yield chance, subset

    assert_law(Ancestral(steps=steps, schedule=schedule), choices)


def test_ancestral_reveals_as_its_schedule_says():
    t, steps, rows = 64, 8, 4000
    wide = Wide(t)
    answer = Ancestral(steps=steps, schedule=Cosine())(wide, wide.canvas(rows), places(rows))
    masked = [Cosine().masked(1 - n / steps) for n in range(steps + 1)]
    expected = torch.tensor([masked[n] - masked[n + 1] for n in range(steps)]) * rows * t
    assert abs(chi_square(torch.bincount(answer.revealed_at.flatten(), minlength=steps), expected)) < 4
    exact = Ancestral(steps=steps, exact_count=True)(wide, wide.canvas(50), places(50))
    for n in range(1, steps):
        done = (exact.revealed_at < n).sum(1)
        assert bool(((done - t * (1 - masked[n])).abs() <= 0.5 + 1e-4).all())


def test_many_ancestral_steps_approach_the_random_order_law():
    rows = 60_000
    law = exact_law(lambda _, state: [(1 / len(open_slots(state)), [slot]) for slot in open_slots(state)])
    x = Ancestral(steps=400, schedule=Linear())(TOY, TOY.canvas(rows), places(rows)).x
    assert abs(chi_square(torch.bincount(answer_number(x, K), minlength=K**T), law * rows)) < 5


def test_low_confidence_commits_tokens_by_their_own_confidence_and_not_by_the_softmax():
    """Exact step probability: prod of p over the committed, times the mass below their confidence elsewhere."""
    rows = 60_000
    answer = LowConfidence(steps=T)(TOY, TOY.canvas(rows), places(rows))
    first = answer.revealed_at.argmin(1)
    p = probabilities((K,) * T)
    expected, counts, softmax = [], [], []
    for slot, token in itertools.product(range(T), range(K)):
        below = [(p[other] * (p[other] < p[slot, token])).sum() for other in range(T) if other != slot]
        expected.append(float(p[slot, token]) * float(torch.stack(below).prod()))
        counts.append(int(((first == slot) & (answer.x[:, slot] == token)).sum()))
        softmax.append(float(p[slot, token]))
    assert sum(expected) == pytest.approx(1)
    counts, expected = torch.tensor(counts), torch.tensor(expected)
    assert abs(chi_square(counts, expected * rows)) < 4
    by_slot = expected.view(T, K).sum(1, keepdim=True)
    assert chi_square(counts, (torch.tensor(softmax).view(T, K) * by_slot).flatten() * rows) > 100


class Wide(Denoiser):
    """A denoiser of any length that knows nothing but its slot and the mean of what is visible."""

    k = 7

    def __init__(self, t: int):
        self.t, self.asked, self.table = t, 0, torch.randn(t, 7, generator=torch.Generator().manual_seed(0))

    def __call__(self, canvas, x, at):
        self.asked += len(at)
        seen = torch.where(x == self.k, 0, x + 1).float().mean(1)
        return self.table[at[:, 1]] + seen[at[:, 0], None] * torch.arange(self.k)

    def canvas(self, rows: int) -> Canvas:
        return Canvas(
            torch.zeros(rows, self.t, dtype=torch.int64), torch.arange(self.t).expand(rows, self.t).contiguous()
        )


@pytest.mark.parametrize("kind", ALL)
@given(st.integers(1, 40), st.sampled_from([0, 4, 8]), st.integers(0, 3), st.data())
@settings(max_examples=15, deadline=None)
def test_every_slot_is_written_once_and_given_tokens_and_missing_slots_are_left_alone(kind, steps, block, seed, data):
    wide, rows = Wide(16), 3
    blocks = 16 // (block or 16)
    if steps > blocks:
        steps -= steps % blocks
    slots = torch.arange(16).repeat(rows, 1)
    slots[1, 14:] = -1
    given_tokens = torch.full((rows, 16), wide.k)
    for slot in data.draw(st.sets(st.integers(0, 13), max_size=6)):
        given_tokens[2, slot] = slot % wide.k
    canvas = replace(wide.canvas(rows), slots=slots)
    before = given_tokens.clone()
    answer = kind(steps=steps, block=block)(wide, canvas, places(rows, seed), given=given_tokens, record=True)
    known = given_tokens < wide.k
    exists = slots >= 0
    assert torch.equal(answer.x[known], given_tokens[known])
    assert bool((answer.x[exists] < wide.k).all()) and bool((answer.x[~exists] == wide.k).all())
    assert bool((answer.revealed_at[exists & ~known] >= 0).all())
    assert bool((answer.revealed_at[known | ~exists] == -1).all())
    assert torch.equal(given_tokens, before)
    assert torch.equal(answer.valid, exists)
    if block:
        number = torch.arange(16) // block
        later = [answer.revealed_at[0][number == n] for n in range(blocks)]
        assert all(int(a.max()) < int(b.min()) for a, b in itertools.pairwise(later))


@pytest.mark.parametrize("kind", ALL)
def test_rows_do_not_depend_on_their_batch_and_seeds_repeat(kind):
    wide = Wide(16)
    sampler = kind(steps=8)
    whole = sampler(wide, wide.canvas(6), places(6))
    assert torch.equal(sampler(wide, wide.canvas(6), places(6)).x, whole.x)
    assert torch.equal(sampler(wide, wide.canvas(2), places(6)[3:5]).x, whole.x[3:5])
    assert not torch.equal(sampler(wide, wide.canvas(6), places(6, seed=1)).x, whole.x)


@pytest.mark.parametrize("kind", ALL)
def test_temperature_zero_does_not_depend_on_the_seed_where_the_order_does_not(kind):
    wide, sampler = Wide(16), kind(steps=16).greedy()
    one, other = (sampler(wide, wide.canvas(2), places(2, seed)).x for seed in (0, 1))
    assert torch.equal(one, other) or kind in (RandomOrder, Ancestral)


def test_planned_samplers_ask_only_for_the_slots_they_open():
    for sampler in (RandomOrder(steps=8), LeftToRight(steps=8), Ancestral(steps=8)):
        wide = Wide(16)
        sampler(wide, wide.canvas(5), places(5))
        assert wide.asked == 5 * 16
    wide = Wide(16)
    TopProb(steps=4, block=8)(wide, wide.canvas(1), places(1))
    assert wide.asked == (8 + 4) * 2  # two blocks, open slots of the block only


@given(st.lists(st.integers(0, 300), min_size=1, max_size=5), st.integers(1, 64))
def test_transfer_counts_sum_to_the_unknown_slots_and_differ_by_at_most_one(unknown, steps):
    counts = transfer_counts(torch.tensor(unknown), steps)
    assert counts.sum(1).tolist() == unknown
    assert bool((counts.amax(1) - counts.amin(1) <= 1).all())
    assert bool((counts.diff(dim=1) <= 0).all())


def test_recorded_log_probabilities_and_entropies_are_those_of_the_law_used():
    rows = 200
    for sampler in (TopProb(steps=4, temperature=0.7), LeftToRight(steps=4, top_k=2), RandomOrder(steps=4)):
        answer = sampler(TOY, TOY.canvas(rows), places(rows), record=True)
        assert answer.logp is not None and answer.entropy is not None
        for step in range(4):
            state = torch.where(answer.revealed_at < step, answer.x, K)
            at = (answer.revealed_at == step).nonzero()
            law = truncate(TOY(TOY.canvas(rows), state, at), sampler.law).log_softmax(-1)
            token = answer.x[at[:, 0], at[:, 1]]
            index = (at[:, 0], at[:, 1])
            assert torch.allclose(answer.logp[index], law.gather(1, token[:, None])[:, 0], atol=1e-6)
            probability = law.exp()
            entropy = -(probability * law.clamp(min=-100)).sum(-1)
            assert torch.allclose(answer.entropy[index], entropy, atol=1e-5)


def test_truncation_keeps_the_most_likely_tokens():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert truncate(logits, Law(top_k=2)).isfinite().tolist() == [[False, True, False, True]]
    assert truncate(logits, Law(top_p=0.65)).isfinite().tolist() == [[False, True, False, True]]
    assert truncate(logits, Law(top_p=0.71)).isfinite().tolist() == [[False, True, True, True]]
    assert truncate(logits, Law(top_p=1e-9)).isfinite().tolist() == [[False, True, False, False]]
    assert torch.allclose(truncate(logits, Law(temperature=2.0)), logits / 2)


def test_tokens_are_drawn_in_float32_whatever_the_precision_of_the_logits():
    logits = torch.linspace(-1, 1, 64).bfloat16().expand(50_000, 64)
    drawn = draw(logits, Law(), places(50_000), record=False).token
    expected = logits[0].float().softmax(-1) * 50_000
    assert abs(chi_square(torch.bincount(drawn, minlength=64), expected)) < 4


class Twin(Denoiser):
    """Conditional and unconditional logits told apart by the first id of the canvas."""

    k = 5

    def __call__(self, canvas, x, at):
        rows = torch.Generator().manual_seed(0)
        table = torch.randn(2, 3, self.k, generator=rows)
        logits = table[canvas.ids[at[:, 0], 0], at[:, 1]].clone()
        logits[:, 4] = -torch.inf
        return logits


def test_guidance_is_the_w_convention_and_zero_is_off():
    slots = torch.tensor([[1, 2, 3]])
    conditional = Canvas(torch.tensor([[0, 9, 9, 9]]), slots)
    unconditional = Canvas(torch.tensor([[1, 9, 9, 9]]), slots)
    short = Canvas(torch.tensor([[1, 9, 9]]), torch.tensor([[0, 1, 2]]))
    x, at = torch.full((1, 3), 5), torch.tensor([[0, 0], [0, 2]])
    twin = Twin()
    c, u = twin(conditional, x, at), twin(unconditional, x, at)
    assert Guided.of(twin, 0.0) is twin
    for blank in (unconditional, short):  # one forward of 2b rows, or two where lengths differ
        guided = Guided(twin, 1.5)(replace(conditional, blank=blank), x, at)
        assert torch.allclose(guided[:, :4], 2.5 * c[:, :4] - 1.5 * u[:, :4], atol=1e-6)
        assert bool((guided[:, 4] == -torch.inf).all())
    with pytest.raises(UserError, match="guidance"):
        Guided(twin, 1.0)(conditional, x, at)


def test_settings_that_do_not_fit_are_refused():
    wide = Wide(16)
    with pytest.raises(UserError, match="does not divide"):
        TopProb(steps=16, block=5)(wide, wide.canvas(1), places(1))
    with pytest.raises(UserError, match="no multiple"):
        TopProb(steps=5, block=4)(wide, wide.canvas(1), places(1))
    for wrong in ({"steps": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"block": -2}):
        with pytest.raises(UserError):
            TopProb(**wrong)
