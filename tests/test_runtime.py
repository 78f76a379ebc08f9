"""The learner: learning-rate schedule, clipping, and numbers that go wrong."""

import pytest
import torch
from torch import nn

from unmask.errors import UserError
from unmask.learner import Learner
from unmask.runtime import Compute, Optimizer, Runtime


def learner(optimizer: Optimizer, updates: int = 10) -> Learner:
    torch.manual_seed(0)
    runtime = Runtime(Compute(device="cpu"))
    return Learner(runtime, nn.Linear(3, 2), lambda forward, autocast: None, optimizer, updates, reference=False)


def test_the_schedule_warms_up_from_the_first_update_and_decays_to_zero():
    constant = Optimizer(warmup=4)
    assert [constant.factor(n, 10) for n in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [Optimizer().factor(n, 10) for n in range(3)] == [1, 1, 1]
    linear = Optimizer(schedule="linear", warmup=2)
    assert linear.factor(1, 12) == 1 and linear.factor(7, 12) == pytest.approx(0.5) and linear.factor(12, 12) == 0
    cosine = Optimizer(schedule="cosine")
    assert cosine.factor(0, 10) == 1 and cosine.factor(5, 10) == pytest.approx(0.5)


def test_updates_follow_the_schedule():
    trained = learner(Optimizer(lr=0.1, warmup=2))
    rates = []
    for _ in range(3):
        trained.module(torch.ones(1, 3)).sum().backward()
        rates.append(trained.learning_rate)
        trained.update()
        assert trained.optimizer.param_groups[0]["lr"] == rates[-1]
    assert rates == pytest.approx([0.05, 0.1, 0.1])
    assert trained.updates == 3


def test_gradients_are_clipped_to_their_global_norm():
    trained = learner(Optimizer(lr=1.0, max_grad_norm=0.5))
    (trained.module(torch.full((1, 3), 100.0)).sum() * 50).backward()
    assert trained.clip() > 1000
    total = torch.stack([p.grad.norm() for p in trained.module.parameters()]).norm()
    assert float(total) == pytest.approx(0.5, rel=1e-4)


def test_a_skipped_update_moves_the_schedule_but_not_the_weights():
    trained = learner(Optimizer(lr=0.1, warmup=2))
    before = trained.weights()
    (trained.module(torch.ones(1, 3)).sum() * float("nan")).backward()
    assert not trained.clip() < float("inf")
    trained.update(skip=True)
    assert all(torch.equal(before[name], p) for name, p in trained.trainable.items())
    assert all(p.grad is None for p in trained.trainable.values())
    assert trained.learning_rate == 0.1


def test_too_little_memory_is_said_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(Runtime, "memory", 100)
    with pytest.raises(UserError, match=r"training needs 0 GiB .* cpu has 0 GiB: train adapters"):
        learner(Optimizer())


def test_nothing_to_train_is_refused():
    runtime = Runtime(Compute(device="cpu"))
    with pytest.raises(UserError, match="nothing to train"):
        Learner(runtime, nn.Linear(2, 2).requires_grad_(False), lambda f, a: None, Optimizer(), 1, reference=False)
    with pytest.raises(UserError, match="GPU"):
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        Runtime(Compute(device="cuda"))
