"""A masked model small enough to enumerate: a table of logits over all (k + 1)^t states of an answer."""

import itertools

import torch

from unmask.types import Canvas, Policy


class Table(Policy):
    """Random, mutually inconsistent conditionals, like those of a real masked model."""

    def __init__(self, k: int, t: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64):
        self.k, self.t = k, t
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn((k + 1) ** t, t, k, generator=generator, dtype=dtype) * scale
        self.logits = logits.requires_grad_()

    def state(self, x: torch.Tensor) -> torch.Tensor:
        """Number of the state of each row."""
        return (x * (self.k + 1) ** torch.arange(self.t)).sum(1)

    def __call__(self, canvas, x, at):
        return self.logits[self.state(x)[at[:, 0]], at[:, 1]].float()

    def log_probabilities(self, canvas, x, at, target, hide=None, temperature=1.0):
        logits = self.logits[self.state(x)[at[:, 0]], at[:, 1]] / temperature
        return logits.log_softmax(-1).gather(1, target[:, None])[:, 0]

    def canvas(self, rows: int) -> Canvas:
        """Rows without a prompt."""
        return Canvas(
            torch.zeros(rows, self.t, dtype=torch.int64), torch.arange(self.t).expand(rows, self.t).contiguous()
        )

    def answers(self) -> torch.Tensor:
        """All k^t answers."""
        return torch.tensor(list(itertools.product(range(self.k), repeat=self.t)))


def answer_number(x: torch.Tensor, k: int) -> torch.Tensor:
    """Index of each answer in `Table.answers`."""
    t = x.shape[1]
    return (x * k ** torch.arange(t - 1, -1, -1)).sum(1)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Chi-square statistic in standard deviations from its mean; cells that expect fewer than 5 are pooled."""
    small = expected < 5
    counts = torch.cat([counts[~small], counts[small].sum()[None]]).double()
    expected = torch.cat([expected[~small], expected[small].sum()[None]]).double()
    keep = expected > 0
    counts, expected = counts[keep], expected[keep]
    freedom = len(counts) - 1
    return float(((counts - expected).square() / expected).sum() - freedom) / (2 * freedom) ** 0.5
