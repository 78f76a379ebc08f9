"""One way from an objective to gradients, exact for every objective and in the memory of one micro-batch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.objectives.base import Objective, Terms
from unmask.types import Rollouts, Scored, View

Scorer = Callable[[Rollouts, View], Float[Tensor, "b t"]]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of one update, with what was scored before."""

    rollouts: Rollouts
    views: Sequence[View]
    old: Float[Tensor, "v b t"] | None  # None: the policy has not moved since, so `old` is `new` without its gradient
    ref: Float[Tensor, "v b t"] | None

    def scored(self, new: Float[Tensor, "v b t"], views: slice = slice(None)) -> Scored:
        weight = torch.stack([view.weight for view in self.views[views]])
        return Scored(
            new=new,
            old=new.detach() if self.old is None else self.old[views],
            ref=None if self.ref is None else self.ref[views],
            weight=weight.to(new.dtype),
            advantage=self.rollouts.advantage.to(new.dtype),
            valid=self.rollouts.answer.valid,
            group=self.rollouts.group,
            keep=self.rollouts.keep,
        )


def accumulate_gradient(
    objective: Objective,
    score: Scorer,
    batches: Sequence[MicroBatch],
    denominator: float | Tensor,
    backward: Callable[[Tensor], None],
    accumulating: Callable[[bool], AbstractContextManager] = lambda _: nullcontext(),
    two_passes: bool | None = None,
) -> dict[str, Tensor]:
    """Adds the gradient of `sum of numerators / denominator` to the parameters; returns the summed statistics.

    A separable objective is differentiated view by view, micro-batch by micro-batch. For any other, all views of all
    rows are scored without gradient, the objective is differentiated at the leaf `new`, and `sum(coefficient * new)` is
    back-propagated view by view: the same gradient, since both passes see the same parameters.

    Args:
        score: log-probabilities of some rows under one view, with gradients if they are enabled.
        denominator: over all micro-batches and ranks.
        backward: back-propagates a scalar.
        accumulating: the context of one forward and its backward; it is told whether they are the last of the update.
        two_passes: None decides by `objective.separable`.
    """
    calls = sum(len(batch.views) for batch in batches)
    stats: dict[str, Tensor] = {}

    def add(terms: Terms) -> None:
        for name, value in {"loss": terms.numerator.detach(), **terms.stats}.items():
            stats[name] = stats[name] + value if name in stats else value

    coefficients = None
    if not objective.separable if two_passes is None else two_passes:
        with torch.no_grad():
            new = [torch.stack([score(batch.rollouts, view) for view in batch.views]) for batch in batches]
        leaf = torch.cat(new, 1).requires_grad_()
        terms = objective(_join(batches, leaf))
        (gradient,) = torch.autograd.grad(terms.numerator, leaf)
        coefficients = gradient.split([len(batch.rollouts) for batch in batches], 1)
        add(terms)
    done = 0
    for index, batch in enumerate(batches):
        for v, view in enumerate(batch.views):
            done += 1
            with accumulating(done == calls):
                new = score(batch.rollouts, view)
                if coefficients is not None:
                    backward((coefficients[index][v] * new).sum() / denominator)
                    continue
                terms = objective(batch.scored(new[None], slice(v, v + 1)))
                backward(terms.numerator / denominator)
            add(terms)
    return stats


def _join(batches: Sequence[MicroBatch], new: Float[Tensor, "v b t"]) -> Scored:
    """All micro-batches as one record."""
    parts = new.split([len(batch.rollouts) for batch in batches], 1)
    scored = [batch.scored(part) for batch, part in zip(batches, parts, strict=True)]

    def cat(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(part, name) for part in scored], dim)

    return Scored(
        new=new,
        old=new.detach() if batches[0].old is None else cat("old", 1),
        ref=None if batches[0].ref is None else cat("ref", 1),
        weight=cat("weight", 1),
        advantage=cat("advantage", 0),
        valid=cat("valid", 0),
        group=cat("group", 0),
        keep=cat("keep", 0),
    )
