"""The order of training rows: a stream that passes over them again and again, permuted anew in every pass."""

from collections.abc import Sequence

import numpy as np

from unmask.errors import UserError
from unmask.tasks.base import Row


def order(rows: Sequence[Row], seed: int, positions: Sequence[int]) -> list[int]:
    """Indices of the rows at these positions of a stream that permutes the split anew in every pass."""
    n, indices = len(rows), []
    if not n:
        raise UserError("the training split is empty")
    for position in positions:
        epoch, place = divmod(position, n)
        indices.append(int(_permutation(seed, epoch, n)[place]))
    return indices


_MOST_CACHED = 8  # permutations
_cache: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A pure function of its arguments; some are kept, because a step asks for many of their entries."""
    if (seed, epoch, n) not in _cache:
        if len(_cache) == _MOST_CACHED:
            _cache.clear()
        _cache[seed, epoch, n] = np.random.default_rng([seed, epoch]).permutation(n)
    return _cache[seed, epoch, n]
