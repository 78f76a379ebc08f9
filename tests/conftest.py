"""Shapes of all annotated records and functions of `unmask` are checked while tests run."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

_CHECKED = ["unmask.random", "unmask.schedules", "unmask.types", "unmask.samplers", "unmask.views", "unmask.objectives"]
_CHECKED += ["unmask.advantages", "unmask.models", "unmask.modalities"]
_HOOK = install_import_hook(_CHECKED, "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings, and changes the order of sums

from hypothesis import settings  # noqa: E402

settings.register_profile("steady", deadline=None, derandomize=True)  # a slow machine or a new example is no failure
settings.load_profile("steady")
