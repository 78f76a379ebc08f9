"""Image tokenizers read from their folders."""

from collections.abc import Mapping
from pathlib import Path

import torch

from unmask.errors import UserError
from unmask.models.image_tokenizer import ImageTokenizer
from unmask.models.magvit import DERIVED, Magvit
from unmask.models.patch_codebook import PatchCodebook
from unmask.models.settings import Settings, as_json
from unmask.models.vqmodel import VQModel
from unmask.models.weights import first_few, opened, read_json

KINDS: dict[str, type[ImageTokenizer]] = {"MAGVITv2": Magvit, "VQModel": VQModel, "PatchCodebook": PatchCodebook}
"""Image tokenizers by `_class_name`."""
FILES = ("pytorch_model.safetensors", "diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin")


def load_image_tokenizer(folder: Path) -> ImageTokenizer:
    """An image tokenizer in float32 on the CPU, frozen.

    Args:
        folder: `config.json`, whose `_class_name` is in `KINDS` (VQModel may leave it out), and the weights in one of
            `FILES`.

    Raises:
        UserError: in one line, what is missing, unknown or broken, and in which file.
    """
    settings = Settings(read_json(folder / "config.json"), str(folder / "config.json"))
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no weights of an image tokenizer: none of {', '.join(FILES)}")
    unnamed = "VQModel" if "num_vq_embeddings" in settings.values else None
    kind = settings.values.get("_class_name", unnamed)
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"{settings.where}: _class_name {as_json(kind)} is not supported; supported: {known}")
    with opened(file) as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        with torch.device("meta"):
            module = KINDS[kind].of(settings, shapes, str(file))
        names = _parameters(module)
        known = {name: shape for name, shape in shapes.items() if name not in DERIVED}
        missing, extra = names.keys() - known.keys(), known.keys() - names.keys()
        if missing or extra:
            lost = f"missing {first_few(missing)}" if missing else ""
            more = f"unknown {first_few(extra)}" if extra else ""
            raise UserError(f"{file}: the tensors are not those of {kind}: {'; '.join(filter(None, (lost, more)))}")
        state = {}
        for theirs, ours in names.items():
            wanted = tuple(module.get_parameter(ours).shape)
            # A projection of the attention is stored as a 1x1 convolution in one family and as a matrix in the other.
            if shapes[theirs] not in (wanted, (*wanted, 1, 1)):
                raise UserError(f"{file}: {theirs} is {list(shapes[theirs])} instead of {list(wanted)}")
            state[ours] = tensors.get_tensor(theirs).to(torch.float32, copy=True).view(wanted)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def _parameters(module: ImageTokenizer) -> Mapping[str, str]:
    """Official name -> neutral name of every parameter."""
    there = {name for name, _ in module.named_parameters()}
    pairs = {f"{t}{kind}": f"{o}{kind}" for t, o in module.names().items() for kind in ("", ".weight", ".bias")}
    return {theirs: ours for theirs, ours in pairs.items() if ours in there}
