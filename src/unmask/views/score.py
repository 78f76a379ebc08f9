"""`score`: the only place where a policy is called with gradients."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.types import Canvas, Policy, View


def score(policy: Policy, canvas: Canvas, x: Int[Tensor, "b t"], view: View) -> Float[Tensor, "b t"]:
    """log p(x_i | everything the view shows) where the view's weight is positive, exactly 0 elsewhere; float32."""
    at = (view.weight > 0).nonzero()
    shown = torch.where(view.mask, policy.k, x)
    target = x[at[:, 0], at[:, 1]]
    logp = policy.log_probabilities(canvas, shown, at, target, view.hide)
    return logp.new_zeros(x.shape).index_put((at[:, 0], at[:, 1]), logp)
