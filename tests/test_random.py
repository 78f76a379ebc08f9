"""The stateless hash: uniform, independent across counters, and a sound source of Gumbel-max draws."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toys import chi_square
from unmask.random import Random


def places(n: int, seed: int = 0) -> Random:
    return Random.root(seed, "test").fold(torch.arange(n))


def test_uniform_numbers_fill_the_unit_interval_evenly():
    u = places(1000).uniform(1000)
    assert float(u.min()) > 0 and float(u.max()) < 1
    counts = torch.histc(u, 256, 0, 1)
    assert abs(chi_square(counts, torch.full((256,), u.numel() / 256))) < 4


def test_every_bit_is_a_fair_coin_and_pairs_of_bits_are_independent():
    bits = places(400).bits(512)
    flags = torch.stack([(bits >> i) & 1 for i in range(32)]).flatten(1).double()
    n = flags.shape[1]
    assert float((flags.mean(1) - 0.5).abs().max()) < 4.5 * 0.5 / n**0.5
    correlation = torch.corrcoef(flags) - torch.eye(32)
    assert float(correlation.abs().max()) < 5 / n**0.5


def test_neighbouring_counters_give_independent_numbers_on_every_level():
    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    base = places(1000)
    u = base.uniform(200)
    bound = 4.5 / u.numel() ** 0.5
    assert abs(correlation(u[:, 1:], u[:, :-1])) < bound  # ids
    assert abs(correlation(u[1:], u[:-1])) < bound  # places
    assert abs(correlation(u, base.fold(0).uniform(200))) < bound  # levels
    assert abs(correlation(base.fold(0).uniform(200), base.fold(1).uniform(200))) < bound
    assert abs(correlation(u, places(1000, seed=1).uniform(200))) < bound  # seeds
    assert abs(correlation(u, Random.root(0, "other").fold(torch.arange(1000)).uniform(200))) < bound  # purposes


def test_no_two_places_share_a_shifted_or_permuted_copy_of_one_sequence():
    bits = places(2000).bits(64)
    assert len(bits.unique()) > bits.numel() - 20  # birthday collisions of 32-bit words only: 2 expected


def test_a_draw_depends_on_its_place_alone():
    whole = places(50).fold(3).uniform(17)
    assert torch.equal(places(50)[7:9].fold(3).uniform(17), whole[7:9])
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(places(50)[order].fold(3).uniform(17), whole[order])
    assert torch.equal(whole[:, :5], places(50).fold(3).uniform(5))


def test_the_numbers_never_change():
    """A change of the hash changes every published run: it must be deliberate."""
    assert Random.root(7, "rollout", 3).fold(5).bits(4).tolist() == PINNED


def test_gumbel_noise_has_its_law():
    g = places(1000).gumbel(1000).double().flatten()
    for q in (0.001, 0.1, 0.5, 0.9, 0.999):
        quantile = -torch.log(-torch.log(torch.tensor(q, dtype=torch.float64)))
        error = float((g < quantile).double().mean()) - q
        assert abs(error) < 4.5 * (q * (1 - q) / g.numel()) ** 0.5


def test_gumbel_max_draws_from_the_softmax_also_in_its_far_tail():
    logits = torch.tensor([0.0, 1.0, 2.0, -3.0, -6.0, 0.5, 0.5, -9.0])
    n = 400_000
    drawn = (logits + places(n).gumbel(8)).argmax(1)
    assert abs(chi_square(torch.bincount(drawn, minlength=8), logits.softmax(0) * n)) < 4


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_any_seed_gives_numbers_inside_the_interval(seed, n):
    u = Random.root(seed, "any").fold(torch.arange(3)).uniform(n)
    assert u.shape == (3, n)
    assert bool(((u > 0) & (u < 1)).all())


PINNED = [2108186519, -1090310167, -869335304, -502024875]
