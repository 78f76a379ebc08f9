"""A policy in training: its optimizer, its reference, and the state from which it goes on."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from unmask.errors import UserError
from unmask.run_directory import write_json, writing
from unmask.runtime import Optimizer, Runtime
from unmask.tensors import write_tensors
from unmask.types import Policy

MakePolicy = Callable[[Callable[..., Tensor], Callable[[], AbstractContextManager]], Policy]
"""From a module and an autocast context to a policy."""

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Learner:
    """A policy in training.

    Args:
        module: backbone, possibly with adapters; its trainable parameters are those that require a gradient.
        make_policy: from a module to the policy that speaks through it.
        updates: total number of optimizer updates, for the schedule.
        reference: keep the start policy for a KL term.

    Raises:
        UserError: nothing requires a gradient; the device's memory cannot hold even the weights in training.
    """

    def __init__(
        self,
        runtime: Runtime,
        module: nn.Module,
        make_policy: MakePolicy,
        optimizer: Optimizer,
        updates: int,
        reference: bool,
    ):
        self.runtime, self.module, self.config, self.total = runtime, module, optimizer, updates
        if not any(p.requires_grad for p in module.parameters()):
            raise UserError("nothing to train: no parameter requires a gradient")
        self._check_memory(reference)
        self._frozen = None
        if reference and not hasattr(module, "disable_adapter"):
            self._frozen = deepcopy(module).requires_grad_(False).eval()
            self._frozen = runtime.wrap(self._frozen) if runtime.sharded else self._frozen.to(runtime.device)
        self._wrapped = runtime.wrap(module)
        self.trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimizer = optimizer.build(list(self.trainable.values()))
        self._make = make_policy
        self.updates = 0
        self.module.eval()  # no dropout anywhere: old and new log-probabilities must be comparable

    def _check_memory(self, reference: bool) -> None:
        """Weights, gradients, moments and the reference, without any activation."""
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in self.module.parameters()]
        weights, trained = sum(size for size, _ in sizes), 3 * sum(size for size, trains in sizes if trains)
        copies = 2 if reference and not hasattr(self.module, "disable_adapter") else 1
        needed = (copies * weights + trained) / (self.runtime.world if self.runtime.sharded else 1)
        if needed > self.runtime.memory:
            raise UserError(
                f"training needs {needed / 2**30:.0f} GiB for weights, gradients and optimizer, {self.runtime.device} "
                f"has {self.runtime.memory / 2**30:.0f} GiB: train adapters (--adapter.rank 64), or use --compute.shard"
            )

    @property
    def policy(self) -> Policy:
        """For gradients: calls go through the wrapper that reduces them over processes."""
        return self.speaking(self._make)

    def speaking(self, make: MakePolicy) -> Policy:
        """As `policy`, through another adapter: the same weights asked for something else."""
        return make(self._wrapped, self.runtime.autocast)

    @property
    def frozen(self) -> Policy:
        """For everything without gradients."""
        return self._make(self.module, self.runtime.autocast)

    @contextmanager
    def reference(self) -> Iterator[Policy]:
        """The policy that training started from: adapters off, or a frozen copy."""
        if self._frozen is not None:
            yield self._make(self._frozen, self.runtime.autocast)
        else:
            with self.module.disable_adapter():  # pyright: ignore[reportCallIssue]
                yield self._make(self.module, self.runtime.autocast)

    def backward(self, loss: Tensor) -> None:
        """Back-propagates this process's part of a loss that is a sum over processes."""
        (loss * self.runtime.world).backward()  # the wrapper averages over processes

    def accumulating(self, last: bool) -> AbstractContextManager:
        """Around a forward and its backward; `last`: of an update."""
        return self.runtime.accumulating(self._wrapped, last)

    def clip(self) -> float:
        """Clips the gradient to `max_grad_norm`; returns its norm before, over all processes."""
        return float(whole(nn.utils.clip_grad_norm_(list(self.trainable.values()), self.config.max_grad_norm)))

    def update(self, skip: bool = False) -> None:
        """One optimizer step; `skip`: the gradient is forgotten, but the schedule moves on."""
        if not skip:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate
            self.optimizer.step()
        self.forget()
        self.updates += 1

    def forget(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return self.config.lr * self.config.factor(self.updates, self.total)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the trainable parameters."""
        return {name: p.detach().clone() for name, p in self.trainable.items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Puts trainable parameters back."""
        with torch.no_grad():
            for name, p in self.trainable.items():
                p.copy_(like(p, weights[name]))

    @property
    def state_bytes(self) -> int:
        """Size of a checkpoint without the best weights."""
        return sum(3 * p.numel() * p.element_size() for p in self.trainable.values()) + 2**20

    def save(self, folder: Path, state: dict[str, Any], best: Mapping[str, Tensor] | None = None) -> None:
        """Writes what is needed to go on as if nothing had happened; whole or not at all.

        The files hold whole tensors: any number of processes, sharded or not, can go on from them.
        """
        moments = {
            f"{name}/{key}": self.optimizer.state[p][key]
            for name, p in self.trainable.items()
            if p in self.optimizer.state
            for key in _MOMENTS
        }
        parts = {"trainable": self.trainable, "optimizer": moments} | ({} if best is None else {"best": best})
        temporary = folder.with_name(f".{folder.name}.tmp")
        with writing(folder):
            if self.runtime.main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            for name, tensors in parts.items():
                gathered = on_main(self.runtime, tensors)
                if self.runtime.main:
                    write_tensors(temporary / f"{name}.safetensors", gathered)
                del gathered
            if self.runtime.main:
                write_json(temporary / "state.json", {**state, "updates": self.updates})
                for file in temporary.iterdir():
                    _sync(file)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
        self.runtime.wait()

    def load(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """The state that `save` wrote, and the best weights.

        Raises:
            UserError: a file is missing or damaged.
        """
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            with safe_open(folder / "trainable.safetensors", "pt") as file, torch.no_grad():
                for name, p in self.trainable.items():
                    p.copy_(like(p, file.get_tensor(name)))
            with safe_open(folder / "optimizer.safetensors", "pt") as file:
                stored = set(file.keys())
                for name, p in self.trainable.items():
                    if f"{name}/step" in stored:
                        values = {key: file.get_tensor(f"{name}/{key}") for key in _MOMENTS}
                        moments = {key: like(p, values[key]) for key in _MOMENTS[:2]}
                        self.optimizer.state[p] = {"step": values["step"], **moments}
            best = None
            if (folder / "best.safetensors").exists():
                with safe_open(folder / "best.safetensors", "pt") as file:
                    best = {name: like(p, file.get_tensor(name)) for name, p in self.trainable.items()}
        except Exception as error:
            raise UserError(
                f"checkpoint {folder} cannot be read ({type(error).__name__}: {error}): delete this folder, then "
                "--resume goes on from the one before"
            ) from error
        self.updates = state.pop("updates")
        return state, best


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards of one together; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_main(runtime: Runtime, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the memory of the main process, nothing in the others; every process must ask."""
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if runtime.main:
            gathered[name] = full.contiguous().cpu()
    return gathered


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor on the device of a parameter, cut into shards if the parameter is."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
