"""Classifier-free guidance as a denoiser around a denoiser."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.errors import UserError
from unmask.types import Canvas, Denoiser


class Guided(Denoiser):
    """Logits (1 + w) c - w u, with c from the canvas and u from its unconditional twin `canvas.blank`.

    This is the `w` convention of LLaDA, MMaDA and MaskGRPO (w = 0 is off); the `scale` convention is s = 1 + w. Twins
    of equal length run in one forward of 2b rows.
    """

    def __init__(self, denoiser: Denoiser, guidance: float):
        self.denoiser, self.guidance, self.k = denoiser, guidance, denoiser.k

    @staticmethod
    def of(denoiser: Denoiser, guidance: float) -> Denoiser:
        """The denoiser itself where guidance is off."""
        return Guided(denoiser, guidance) if guidance else denoiser

    def __call__(self, canvas: Canvas, x: Int[Tensor, "b t"], at: Int[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        blank = canvas.blank
        if blank is None:
            raise UserError("guidance needs an unconditional prompt, and this canvas has none: set guidance to 0")
        if blank.ids.shape == canvas.ids.shape:
            both = _stack(canvas, blank)
            shifted = torch.stack([at[:, 0] + len(canvas), at[:, 1]], 1)
            conditional, unconditional = self.denoiser(both, torch.cat([x, x]), torch.cat([at, shifted])).chunk(2)
        else:
            conditional, unconditional = self.denoiser(canvas, x, at), self.denoiser(blank, x, at)
        guided = unconditional + (1 + self.guidance) * (conditional - unconditional)
        return torch.where(conditional == -torch.inf, conditional, guided)  # banned ids: -inf minus -inf is no number


def _stack(a: Canvas, b: Canvas) -> Canvas:
    """The rows of both canvases; a field that only one of them has is filled with its default."""

    def fill(name: str, default: Tensor) -> Tensor | None:
        first, second = getattr(a, name), getattr(b, name)
        if first is None and second is None:
            return None
        return torch.cat([default if first is None else first, default if second is None else second])

    everything = torch.ones_like(a.ids, dtype=torch.bool)
    counting = torch.arange(a.ids.shape[1], device=a.device).expand_as(a.ids)
    if (a.block is None) != (b.block is None):
        raise UserError("a canvas and its unconditional twin must both be block-causal or both be not")
    return Canvas(
        ids=torch.cat([a.ids, b.ids]),
        slots=torch.cat([a.slots, b.slots]),
        attend=fill("attend", everything),
        positions=fill("positions", counting),
        block=fill("block", counting),
    )
