"""What a result says beside its score: success per category, means of rewards that are no success or failure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unmask.tasks.base import Task

Z = 1.959964
"""Of a two-sided 95 % interval."""


def with_breakdown(result: dict[str, Any], task: Task, samples: int) -> dict[str, Any]:
    """A result with `categories`, where rows have them, and `rewards`, where generations were judged by some.

    The score of a task whose `overall` is by category becomes the mean of the categories' scores. Where no generation
    could be right or wrong, score and interval are None.

    Args:
        result: of an evaluation.
        task: what was evaluated.
        samples: consecutive generations per row.
    """
    generations = result.pop("generations")
    groups = [generations[i : i + samples] for i in range(0, len(generations), samples)]
    judged = [group for group in groups if all(item["status"] in ("ok", "invalid") for item in group)]
    shares = [sum(item["correct"] for item in group) / samples for group in judged]
    kinds = [group[0].get("category") for group in judged]
    if judged and all(kinds):
        result["categories"] = {
            kind: _share([share for share, own in zip(shares, kinds, strict=True) if own == kind])
            for kind in dict.fromkeys(kinds)
        }
        if task.overall == "categories":
            result["score"], low_high = balanced(shares, kinds)
            result["interval"] = list(low_high)
    labels = dict.fromkeys(label for item in generations for label in item.get("rewards", ()))
    if labels:
        result["rewards"] = {label: _reward(label, groups) for label in labels}
        if not judged:
            result["score"] = result["interval"] = None
    return {**result, "generations": generations}


def balanced(shares: Sequence[float], kinds: Sequence[Any]) -> tuple[float, tuple[float, float]]:
    """The mean of the kinds' means, and its 95 % Wilson interval, each kind being a stratum of its own.

    Args:
        shares: of rows, in [0, 1].
        kinds: of the same rows.
    """
    strata: dict[Any, list[float]] = {}
    for share, kind in zip(shares, kinds, strict=True):
        strata.setdefault(kind, []).append(share)
    means = {kind: sum(values) / len(values) for kind, values in strata.items()}
    p = sum(means.values()) / len(means)
    variance = (
        sum(
            sum((value - means[kind]) ** 2 for value in values) / max(1, len(values) - 1) / len(values)
            for kind, values in strata.items()
        )
        / len(means) ** 2
    )
    size = p * (1 - p) / variance if variance else float(len(shares))
    return p, wilson(p, size)


def wilson(p: float, size: float) -> tuple[float, float]:
    """95 % interval of a share p among `size` rows."""
    centre = (p + Z * Z / (2 * size)) / (1 + Z * Z / size)
    half = Z * math.sqrt(p * (1 - p) / size + Z * Z / (4 * size * size)) / (1 + Z * Z / size)
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(shares: Sequence[float]) -> dict[str, Any]:
    p = sum(shares) / len(shares)
    return {"score": p, "interval": list(wilson(p, len(shares))), "items": len(shares)}


def _reward(label: str, groups: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean of a reward over rows, each the mean of its answers, overall and per category; answers that it did not judge
    are left out and counted."""
    rows: list[tuple[Any, float]] = []
    unjudged = 0
    for group in groups:
        values = [item["rewards"][label] for item in group]
        known = [value for value in values if value is not None]
        unjudged += len(values) - len(known)
        if known:
            rows.append((group[0].get("category"), sum(known) / len(known)))
    kinds = dict.fromkeys(kind for kind, _ in rows if kind)
    found = _mean([value for _, value in rows]) | {"unjudged": unjudged}
    if kinds:
        found["categories"] = {kind: _mean([value for own, value in rows if own == kind]) for kind in kinds}
    return found


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its normal 95 % interval; None where there is nothing to average."""
    if not values:
        return {"mean": None, "interval": None, "items": 0}
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    half = Z * math.sqrt(variance / len(values))
    return {"mean": mean, "interval": [mean - half, mean + half], "items": len(values)}
