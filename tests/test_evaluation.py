"""Evaluation: intervals that cover, unbiased pass@k, and generations in order."""

import random
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unmask
from runs import tiny_model
from unmask.evaluation import interval, pass_at_k
from unmask.samplers import TopProb
from unmask.tasks import Sudoku


def test_intervals_cover_the_truth_about_95_times_in_100():
    rng = random.Random(0)
    for p, n in ((0.5, 100), (0.1, 200), (0.9, 300)):
        hits = 0
        for _ in range(600):
            low, high = interval([float(rng.random() < p) for _ in range(n)])
            hits += low <= p <= high
        assert 0.92 <= hits / 600 <= 0.98


def test_clustered_rows_widen_the_interval():
    rng = random.Random(0)
    values, clusters = [], []
    for cluster in range(60):
        hard = rng.random() < 0.5
        for _ in range(10):
            values.append(float(rng.random() < (0.1 if hard else 0.9)))
            clusters.append(cluster)
    free, clustered = interval(values), interval(values, clusters)
    assert clustered[1] - clustered[0] > 2 * (free[1] - free[0])
    single = interval(values, range(len(values)))
    assert single == pytest.approx(free, abs=2e-3)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40))
def test_intervals_hold_the_mean_and_stay_inside_the_unit_interval(values):
    low, high = interval(values)
    assert 0 <= low <= sum(values) / len(values) + 1e-12 and sum(values) / len(values) - 1e-12 <= high <= 1


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer(n, data):
    correct = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    assert pass_at_k(n, correct, k) == pytest.approx(1 - comb(n - correct, k) / comb(n, k))
    assert pass_at_k(n, 0, k) == 0 and pass_at_k(n, n, k) == 1


def test_evaluation_does_not_depend_on_the_batch_and_repeats(tmp_path):
    model = unmask.load(tiny_model(tmp_path / "model"))
    task, sampler = Sudoku(test_items=7), TopProb(steps=4, temperature=0.8)
    results = [unmask.evaluate(model, task, sampler=sampler, samples=2, batch=batch) for batch in (1, 5, 64)]
    assert results[0]["generations"] == results[1]["generations"] == results[2]["generations"]
    questions = [item["question"] for item in results[0]["generations"]]
    assert questions == [row["prompt"] for row in task.rows("test") for _ in range(2)]
    greedy = unmask.evaluate(model, task, sampler=sampler)
    assert greedy["sampler"]["temperature"] == 0 and len(greedy["generations"]) == 7
    assert torch.tensor(greedy["generations"][0]["revealed_at"]).max() == 3
