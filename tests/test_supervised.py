"""Supervised fine-tuning: the corruption law, the expected loss, and normalisers."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from runs import SETTINGS
from toys import Table
from unmask.config import SFTConfig, parse
from unmask.errors import RunError, UserError
from unmask.models.policy import BackbonePolicy
from unmask.random import Random
from unmask.supervised import Course, corrupt, ratios, sft
from unmask.types import View
from unmask.views import score


def config(tmp_path, *more: str) -> SFTConfig:
    file = tmp_path / "sft.yaml"
    keep = {name: SETTINGS[name] for name in ("task", "sampler", "optimizer", "compute")}
    scratch = {"dim": 16, "layers": 1, "heads": 2, "ffn": 32}
    file.write_text(json.dumps({**keep, "scratch": scratch, "batch": 8, "steps": 3}))
    return parse(SFTConfig, "sft", ["--config", str(file), "--out", str(tmp_path / "run"), *more])


def test_mask_ratios_are_uniform_above_their_floor_and_spread_over_the_batch(tmp_path):
    settings = replace(config(tmp_path), batch=64, lowest_ratio=0.1)
    index = torch.arange(64)
    p = torch.stack([ratios(settings, Random.root(0, "level", step), index) for step in range(300)])
    assert float(p.min()) >= 0.1 and float(p.max()) <= 1
    assert float(p.mean()) == pytest.approx(0.55, abs=0.01)
    assert float((p[:, 0].sort().values - torch.linspace(0.1, 1, 300)).abs().max()) < 0.1  # each row by itself
    gaps = p.sort(dim=1).values.diff(dim=1)
    assert torch.allclose(gaps, torch.full_like(gaps, 0.9 / 64), atol=1e-5)
    free = ratios(replace(settings, stratified=False), Random.root(0, "level", 1), torch.arange(2000))
    assert float(free.mean()) == pytest.approx(0.55, abs=0.03)


def test_only_targets_are_hidden_at_their_rate_and_weighted_by_its_inverse():
    rows = 20_000
    ratio = torch.full((rows,), 0.3)
    target = torch.tensor([[True, True, False]]).expand(rows, 3)
    view = corrupt(ratio, target, Random.root(0, "corrupt").fold(torch.arange(rows)))
    assert not bool(view.mask[:, 2].any())
    assert float(view.mask[:, :2].double().mean()) == pytest.approx(0.3, abs=4.5 * (0.21 / rows / 2) ** 0.5)
    assert torch.equal(view.weight, view.mask / 0.3)


def test_the_expected_loss_is_the_negative_elbo():
    """E_p E_mask [sum CE / p] = - mean over orders of the log-likelihood = sum_l (1/l) E_{|mask|=l} [sum CE]."""
    toy, t = Table(3, 4, seed=3), 4
    x = torch.tensor([[0, 2, 1, 1]])
    canvas = toy.canvas(1)
    exact = 0.0
    for size in range(1, t + 1):
        masks = list(itertools.combinations(range(t), size))
        for hidden in masks:
            mask = torch.zeros(1, t, dtype=torch.bool)
            mask[0, list(hidden)] = True
            exact -= float(score(toy, canvas, x, View(mask, mask.float())).detach().sum()) / size / len(masks)
    rows = 200_000
    ratio = torch.linspace(0, 1, rows + 1)[1:] - 0.5 / rows
    target = torch.ones(rows, t, dtype=torch.bool)
    view = corrupt(ratio, target, Random.root(0, "elbo").fold(torch.arange(rows)))
    with torch.no_grad():
        logp = score(toy, toy.canvas(rows), x.expand(rows, t), view)
    losses = -(view.weight * logp).sum(1)
    assert float(losses.mean()) == pytest.approx(exact, abs=5 * float(losses.std()) / rows**0.5)


@pytest.mark.parametrize("loss", ["per_token", "per_answer"])
def test_micro_batches_change_nothing(tmp_path, loss):
    whole = sft(config(tmp_path, "--loss", loss, "--out", str(tmp_path / "whole")))
    parts = sft(config(tmp_path, "--loss", loss, "--out", str(tmp_path / "parts"), "--compute.micro_batch", "3"))
    a, b = whole.learner.weights(), parts.learner.weights()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-9


def test_training_lowers_the_loss_and_repeats(tmp_path):
    run = sft(config(tmp_path, "--steps", "40", "--compute.dtype", "float32"))
    rows = [json.loads(line) for line in run.directory.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    first, last = (sum(row["train/loss"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last < 0.8 * first


def test_rows_without_a_completion_are_refused_before_training_or_left_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"nums": [{n}, 2, 2], "target": {n + 4 + 90 * (n > 5)}}}\n' for n in range(2, 10)))
    words = ["--task", "Countdown", "--task.data", str(file), "--task.validation_share", "0"]
    settings = config(tmp_path, *words)
    rows = settings.task.rows("train")
    some = [row["nums"] for row in rows if "completion" in row]
    assert 0 < len(some) < len(rows) == 8
    with pytest.raises(
        UserError, match=rf"{8 - len(some)} of 8 training rows .* first is countdown-train-5; .*leave_out"
    ):
        sft(settings)
    assert not (tmp_path / "run").exists()
    run = sft(config(tmp_path, *words, "--without_completion", "leave_out"))
    kept = Course(run, run.config, 0).rows
    assert run.step == 3 and [row["nums"] for row in kept] == some
    file.write_text('{"nums": [1, 1, 1], "target": 99}\n' * 8)
    with pytest.raises(UserError, match="training rows of task countdown have no completion to learn from: name other"):
        sft(config(tmp_path, *words, "--without_completion", "leave_out", "--out", str(tmp_path / "other")))


def test_the_filling_after_the_answer_is_a_target_only_if_asked(tmp_path):
    short = ("--task", "Arithmetic", "--task.answer_length", "24", "--task.validation_items", "4")
    both = []
    for tail in ("true", "false"):
        run = sft(config(tmp_path, *short, "--train_tail", tail, "--out", str(tmp_path / tail), "--steps", "1"))
        both.append(json.loads(run.directory.metrics.read_text())["train/loss"])
    assert both[0] != both[1]


def test_what_does_not_fit_is_halved_and_what_is_no_number_is_skipped(tmp_path, monkeypatch):
    whole = sft(config(tmp_path, "--out", str(tmp_path / "whole")))
    call, calls = BackbonePolicy._call, []

    def small(self, canvas, ids, *rest):
        if len(ids) > 3:
            raise torch.OutOfMemoryError("injected")
        return call(self, canvas, ids, *rest)

    monkeypatch.setattr(BackbonePolicy, "_call", small)
    halved = sft(config(tmp_path, "--out", str(tmp_path / "halved"), "--compute.out_of_memory", "halve"))
    a, b = whole.learner.weights(), halved.learner.weights()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-9
    with pytest.raises(RunError, match=r"step 1: out of memory with compute.micro_batch 8; use a smaller one"):
        sft(config(tmp_path, "--out", str(tmp_path / "stopped")))

    def broken(self, canvas, ids, *rest):
        calls.append(ids)
        result = call(self, canvas, ids, *rest)
        return result * torch.nan if len(calls) == 2 else result

    monkeypatch.setattr(BackbonePolicy, "_call", broken)
    with pytest.raises(RunError, match=r"step 2: loss or gradient .norm nan. is not finite"):
        sft(config(tmp_path, "--out", str(tmp_path / "nan")))
    calls.clear()
    run = sft(config(tmp_path, "--out", str(tmp_path / "skipped"), "--guard.nonfinite", "skip"))
    rows = [json.loads(line) for line in run.directory.metrics.read_text().splitlines()]
    assert [row.get("train/skipped") for row in rows] == [None, 1.0, None]
    assert all(bool(p.isfinite().all()) for p in run.learner.weights().values())
