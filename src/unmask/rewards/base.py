"""What a reward returns, and how several become one number.

A reward judges completions and tells three failures apart. `invalid`: the model's output could not be read; that is the
policy's failure and counts 0. `infra_error`: our own machinery failed; the sample is masked out, never scored 0, or the
policy would learn from outages. `not_applicable`: this reward has nothing to say about this row.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """The judgement of one completion.

    Args:
        value: finite where `status` is ok, 0.0 where it is invalid, nan elsewhere.
        status: see the module.
        details: small and JSON-safe: the extracted answer, a reason, results of single tests.

    Raises:
        ValueError: value and status contradict each other.
    """

    value: float
    status: Literal["ok", "invalid", "infra_error", "not_applicable"] = "ok"
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        fits = {"ok": math.isfinite(self.value), "invalid": self.value == 0.0}.get(self.status, math.isnan(self.value))
        if not fits:
            raise ValueError(f"a score that is {self.status} cannot have the value {self.value}")

    @classmethod
    def ok(cls, value: float, /, **details: Any) -> Self:
        """Judged, right or wrong."""
        return cls(float(value), "ok", details)

    @classmethod
    def invalid(cls, reason: str, /, **details: Any) -> Self:
        """The model's output could not be read."""
        return cls(0.0, "invalid", {"reason": reason, **details})

    @classmethod
    def infra_error(cls, reason: str) -> Self:
        """Our side failed; a model must never be able to choose this."""
        return cls(math.nan, "infra_error", {"reason": reason})

    @classmethod
    def not_applicable(cls) -> Self:
        """Nothing to judge in this row."""
        return cls(math.nan, "not_applicable")


@dataclass(frozen=True)
class Reward(ABC):
    """Judges completions. Stateless and order-free: batch = single, reversed = forward, from any thread."""

    name: ClassVar[str]
    any_thread: ClassVar[bool] = True  # False: call it from the thread that everything else runs in

    @abstractmethod
    def __call__(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        """One score per completion, in order; `rows` are the task's rows, one per completion.

        Completions are decoded with special tokens kept. Never raises for anything that a model can write.
        """

    @property
    def label(self) -> str:
        """What the reward is called in metrics and records."""
        return self.name

    def for_tokens(self, end: Sequence[str], mask: Sequence[str] = ()) -> "Reward":
        """The same reward for a tokenizer that has these end and mask tokens too; ignored by what reads no text."""
        del end, mask
        return self


@dataclass(frozen=True)
class PerItem(Reward, ABC):
    """A reward that judges one completion at a time."""

    def __call__(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self.judge(completion, row) for completion, row in zip(completions, rows, strict=True)]

    @abstractmethod
    def judge(self, completion: str, row: Row) -> Score:
        """The score of one completion."""


@dataclass(frozen=True)
class Weighted:
    """A reward and what it counts in the sum. Weight 0: judged and logged, but without influence."""

    reward: Reward
    weight: float = 1.0

    def __post_init__(self):
        if not math.isfinite(self.weight):
            raise ValueError(f"the weight of reward {self.reward.label} must be finite, not {self.weight}")


@dataclass(frozen=True)
class Judged:
    """The rewards of a batch of b completions.

    Args:
        total: weighted sums, b numbers; 0.0 where `keep` is false.
        keep: false: the sample takes no part in means, losses and metrics.
        components: per reward label its b scores.
    """

    total: list[float]
    keep: list[bool]
    components: dict[str, list[Score]]


def combine(rewards: Sequence[Weighted], completions: Sequence[str], rows: Sequence[Row]) -> Judged:
    """Judge completions by a weighted sum of rewards, which are asked at the same time.

    A component that is not applicable leaves the sum. A sample is dropped (`keep` false) if any component with non-zero
    weight is an infra error, or if no component with non-zero weight applies to its row. The second of two rewards with
    one label is called `label-2`, and so on.
    """
    components: dict[str, list[Score]] = {}
    total, dropped, applies = [0.0] * len(completions), [False] * len(completions), [False] * len(completions)
    for weighted, scores in zip(rewards, _judgements(rewards, completions, rows), strict=True):
        if len(scores) != len(completions):
            raise ValueError(f"{weighted.reward.label} gave {len(scores)} scores for {len(completions)} completions")
        components[_free(weighted.reward.label, components)] = scores
        if weighted.weight == 0:
            continue
        for i, score in enumerate(scores):
            if score.status == "infra_error":
                dropped[i] = True
            elif score.status != "not_applicable":
                applies[i] = True
                total[i] += weighted.weight * score.value
    keep = [a and not d for a, d in zip(applies, dropped, strict=True)]
    return Judged([t if k else 0.0 for t, k in zip(total, keep, strict=True)], keep, components)


def _judgements(rewards: Sequence[Weighted], completions: Sequence[str], rows: Sequence[Row]) -> list[list[Score]]:
    """What each reward says. Those that are bound to this thread are asked here, while the others are at work."""
    alone = len(rewards) == 1
    here = {i: w.reward for i, w in enumerate(rewards) if alone or not w.reward.any_thread}
    with ThreadPoolExecutor(len(rewards) or 1) as threads:
        there = {i: threads.submit(w.reward, completions, rows) for i, w in enumerate(rewards) if i not in here}
        scores = {i: reward(completions, rows) for i, reward in here.items()}
        scores |= {i: waiting.result() for i, waiting in there.items()}
    return [scores[i] for i in range(len(rewards))]


def _free(label: str, taken: Mapping[str, object]) -> str:
    if label not in taken:
        return label
    number = 2
    while f"{label}-{number}" in taken:
        number += 1
    return f"{label}-{number}"
