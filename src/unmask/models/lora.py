"""LoRA adapters through PEFT: put on, taken off with PEFT's own `disable_adapter()`, merged for saving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from unmask.errors import UserError
from unmask.models.backbone import Backbone

ROLES = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
"""Modules of every block by what they are for; the same for all families, because the names are neutral."""


def add_lora(
    backbone: Backbone,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] = ("attention", "mlp"),
    seed: int = 0,
) -> PeftModel:
    """Adapters on the projections of every block; everything else is frozen. The backbone is changed in place.

    Args:
        rank: of the update of each weight.
        alpha: the update is multiplied by alpha / rank.
        dropout: on the adapters' input. Anything but 0 makes old and new log-probabilities differ at equal weights.
        targets: roles (`attention`, `mlp`) or names of single projections (q, k, v, o, gate, up, down).
        seed: of the first factors (the second start at 0).

    Raises:
        UserError: a target that matches nothing; rank below 1.
    """
    if rank < 1:
        raise UserError(f"LoRA rank must be at least 1, not {rank}")
    choices = {**ROLES, **{name: (name,) for names in ROLES.values() for name in names}}
    for target in targets:
        if target not in choices:
            raise UserError(f"LoRA target {target!r} matches nothing: use {', '.join(choices)}")
    if not targets:
        raise UserError(f"LoRA needs at least one target: {', '.join(choices)}")
    there = {name.split(".")[-1] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    for target in targets:
        if not there & set(choices[target]):
            raise UserError(
                f"LoRA target {target!r} matches nothing: the blocks of this model have no {target} projection"
            )
    modules = sorted({name for target in targets for name in choices[target]} & there)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules, bias="none")  # pyright: ignore[reportArgumentType]
    model = get_peft_model(backbone, config)  # pyright: ignore[reportArgumentType]
    _initialise(model, seed)
    return model  # pyright: ignore[reportReturnType]


@torch.no_grad()
def _initialise(model: nn.Module, seed: int) -> None:
    """PEFT's law (uniform, bound 1 / sqrt(inputs)) from a generator of our own: all ranks and resumed runs agree."""
    generator = torch.Generator().manual_seed(seed)
    for name, factor in model.named_parameters():
        if ".lora_A." in name:
            bound = factor.shape[1] ** -0.5
            draw = torch.empty(factor.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            factor.copy_(draw)


@torch.no_grad()
def merged_state(model: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state of a plain backbone with the adapters added to the weights, W + alpha / rank B A, by neutral name.

    Merged weights are float32 (float64 if the model is), whatever the dtype in memory: rounding happens once, when
    saving. Other tensors are those of the model. The model itself is not changed.

    Args:
        tensors: the model's state dict, if it is held elsewhere (sharded models: gathered in one process).
    """
    tensors = model.state_dict() if tensors is None else tensors
    adapted = isinstance(model, PeftModel)
    prefix = "base_model.model." if adapted else ""
    backbone = model.get_base_model() if adapted else model
    layers = {name: module for name, module in backbone.named_modules() if isinstance(module, LoraLayer)}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".lora_" in name:
            continue
        plain = name.removeprefix(prefix).replace(".base_layer.", ".")
        place = plain.removesuffix(".weight")
        layer = layers.get(place)
        state[plain] = tensor if layer is None else _merged(layer, tensor, f"{prefix}{place}", tensors)
    return state


def _merged(layer: LoraLayer, weight: Tensor, place: str, tensors: Mapping[str, Tensor]) -> Tensor:
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for adapter in layer.active_adapters:
        a, b = (tensors[f"{place}.lora_{factor}.{adapter}.weight"].to(total.dtype) for factor in "AB")
        total.addmm_(b, a, alpha=layer.scaling[adapter])
    return total


@dataclass(frozen=True)
class LoRA:
    """Adapters as a setting.

    Args:
        rank: of the update of each weight.
        alpha: the update is multiplied by alpha / rank.
        targets: roles (`attention`, `mlp`) or single projections (q, k, v, o, gate, up, down).
    """

    rank: int = 64
    alpha: float = 64.0
    targets: tuple[str, ...] = ("attention", "mlp")

    def __post_init__(self):
        if self.alpha <= 0:
            raise UserError(f"adapter.alpha must be positive, not {self.alpha}")

    def attach(self, backbone: Backbone, seed: int) -> PeftModel:
        """See `add_lora`. There is no dropout: old and new log-probabilities must be comparable."""
        return add_lora(backbone, self.rank, self.alpha, targets=self.targets, seed=seed)
