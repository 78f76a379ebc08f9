"""Shapes of all annotated records and functions of `unmask` are checked while tests run."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook  # noqa: E402

_CHECKED = ["unmask.random", "unmask.schedules", "unmask.types", "unmask.samplers", "unmask.views", "unmask.objectives"]
_CHECKED += ["unmask.advantages", "unmask.models", "unmask.modalities"]
_HOOK = install_import_hook(_CHECKED, "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: a second thread costs more than it brings."""
    torch.set_num_threads(1)
