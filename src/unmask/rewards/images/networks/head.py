"""The small network behind two rewards: linear layers on one vector."""

import re

from torch import Tensor, nn

from unmask.errors import UserError
from unmask.rewards.images.networks.loading import filled, once, read_tensors

_WEIGHT = re.compile(r"layers\.(\d+)\.weight")


def linear_head(state: dict[str, Tensor], width: int, source: str) -> nn.Module:
    """Linear layers in float32, one after the other, ending in one number, from `layers.N.weight` and `layers.N.bias`.

    Between them the released networks have dropout only, which does nothing here: numbers in the names are not
    consecutive.

    Args:
        state: all its weights.
        width: of the vector.
        source: where they are from, for messages.

    Raises:
        UserError: the layers do not fit one another, or the vector.
    """
    numbers = sorted(int(match[1]) for match in map(_WEIGHT.fullmatch, state) if match)
    shapes = [tuple(state[f"layers.{number}.weight"].shape) for number in numbers]
    widths = [width, *(shape[0] for shape in shapes)]
    if not shapes or widths[-1] != 1 or any(shape[1:] != (w,) for shape, w in zip(shapes, widths, strict=False)):
        raise UserError(f"{source}: its layers {shapes} do not lead from {width} numbers to one")
    layers = nn.Sequential(*(nn.Linear(shape[1], shape[0]) for shape in shapes))
    renamed = {
        f"{place}.{kind}": state[f"layers.{number}.{kind}"]
        for place, number in enumerate(numbers)
        for kind in ("weight", "bias")
        if f"layers.{number}.{kind}" in state
    }
    unknown = {name: value for name, value in state.items() if not re.fullmatch(r"layers\.\d+\.(weight|bias)", name)}
    return filled(layers, renamed | unknown, source, "float32")


@once
def load_head(source: str, width: int) -> nn.Module:
    """The linear layers in a file, on the CPU: they are tiny, and so are the differences that they are asked to see."""
    return linear_head(read_tensors(source), width, source)
