"""The adapter between answers in the local token space and a backbone that speaks global ids."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.types import Canvas, Policy


class BackbonePolicy(Policy):
    """Denoiser and policy made from a backbone, a slice of its vocabulary and a mask id.

    Args:
        forward: the backbone or what wraps it (adapters, DDP): one call does everything, so that hooks see one call.
        vocab: rows [start, stop) of the head that answers are made of; local id = global id - start.
        mask_id: global id of the mask token.
        banned: `k` flags of local ids that can never be an answer; None bans nothing.
        autocast: a fresh context around every forward, for mixed precision.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        vocab: tuple[int, int],
        mask_id: int,
        banned: Bool[Tensor, "k"] | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.forward, self.vocab, self.mask_id, self.banned, self.autocast = forward, vocab, mask_id, banned, autocast
        self.k = vocab[1] - vocab[0]

    def fill(
        self, canvas: Canvas, x: Int[Tensor, "b t"], hide: Bool[Tensor, "b l"] | None = None
    ) -> Int[Tensor, "b l"]:
        """Global ids of the canvas with the answer written into its slots, and the prompt masked where `hide` is."""
        tokens = torch.where(x == self.k, self.mask_id, x + self.vocab[0])
        ids = canvas.ids if hide is None else canvas.ids.masked_fill(hide, self.mask_id)
        length = ids.shape[1]
        wide = torch.cat([ids, ids[:, :1]], 1)  # one spare column takes the slots that do not exist
        return wide.scatter(1, torch.where(canvas.slots < 0, length, canvas.slots), tokens)[:, :length]

    def _call(self, canvas: Canvas, ids: Tensor, at: Tensor, target: Tensor | None, temperature: float) -> Tensor:
        rows = at[:, 0] * ids.shape[1] + canvas.slots[at[:, 0], at[:, 1]]
        with self.autocast():
            return self.forward(
                ids,
                canvas.attend,
                canvas.positions,
                block=canvas.block,
                rows=rows,
                vocab=self.vocab,
                targets=target,
                banned=self.banned,
                temperature=temperature,
            )

    def __call__(self, canvas: Canvas, x: Int[Tensor, "b t"], at: Int[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        return self._call(canvas, self.fill(canvas, x), at, None, 1.0)

    def log_probabilities(self, canvas, x, at, target, hide=None, temperature=1.0):
        return self._call(canvas, self.fill(canvas, x, hide), at, target, temperature)
