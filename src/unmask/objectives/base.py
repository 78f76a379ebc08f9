"""The contract of an objective."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from unmask.types import Scored


@dataclass(frozen=True, slots=True)
class Terms:
    """The numerator of a loss over some rows, and sums of what is worth reading.

    `loss = sum of numerators / objective.denominator`, where both sums run over all micro-batches and ranks. Statistics
    are sums as well; they are divided by the sum of the one called `tokens`.
    """

    numerator: Float[Tensor, ""]
    stats: Mapping[str, Float[Tensor, ""]]


class Objective(ABC):
    """An ordinary differentiable function of `Scored.new`.

    `separable` says that each scored token is its own action, so that views and rows may be handled one after
    the other. Otherwise the caller gathers all views first (see `accumulate_gradient`).
    """

    separable: bool = True

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether `Scored.ref` is read."""

    @abstractmethod
    def __call__(self, scored: Scored) -> Terms:
        """Numerator and statistics of these rows."""

    @abstractmethod
    def denominator(
        self, weight: Float[Tensor, "v b t"], valid: Bool[Tensor, "b t"], keep: Bool[Tensor, "b"]
    ) -> Float[Tensor, ""]:
        """What the numerator of these rows is divided by; it is known before any forward."""
