"""unmask: reinforcement learning of discrete (masked) diffusion models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.evaluation import evaluate as evaluate
    from unmask.models import load as load
    from unmask.rl import TrainConfig as TrainConfig
    from unmask.rl import train as train
    from unmask.supervised import SFTConfig as SFTConfig
    from unmask.supervised import sft as sft

_HOME = {
    "load": "unmask.models",
    "train": "unmask.rl",
    "TrainConfig": "unmask.rl",
    "sft": "unmask.supervised",
    "SFTConfig": "unmask.supervised",
    "evaluate": "unmask.evaluation",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that `import unmask` is light."""
    if name not in _HOME:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
