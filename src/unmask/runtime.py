"""Everything that knows about processes and devices: the only user of Accelerate.

`Runtime` is the group of processes; `Learner` is the policy that they train, its optimizer and its reference.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from unmask.errors import RunError, UserError
from unmask.types import Policy

MakePolicy = Callable[[Callable[..., Tensor], Callable[[], AbstractContextManager]], Policy]
"""From a module and an autocast context to a policy."""


@dataclass(frozen=True)
class Compute:
    """Where and how the numbers are made.

    Args:
        device: auto takes a GPU if there is one.
        dtype: of the weights in memory; auto keeps the checkpoint's for adapters and takes float32 for full training.
        precision: of the forward pass; auto takes bfloat16 where the device computes it fast.
        micro_batch: answers per forward with gradients; 0 is all of an update.
        rollout_batch: answers per forward of the sampler and of scoring; 0 is all.
        threads: CPU threads of torch; 0 is its own choice.
        checkpointing: recompute activations in the backward pass: less memory, one more forward.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float64", "float32", "bfloat16"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch: int = 0
    rollout_batch: int = 0
    threads: int = 0
    checkpointing: bool = False

    def __post_init__(self):
        if self.micro_batch < 0 or self.rollout_batch < 0:
            raise UserError("compute.micro_batch and compute.rollout_batch must be positive, or 0 for all")
        if self.threads < 0:
            raise UserError("compute.threads must be positive, or 0 for torch's own choice")


@dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedule.

    Args:
        lr: peak learning rate.
        betas: decay rates of the moments.
        weight_decay: decoupled weight decay.
        max_grad_norm: global gradient norm is clipped to this.
        schedule: constant, linear or cosine decay to 0 after the warm-up.
        warmup: updates of linear warm-up.
    """

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0

    def __post_init__(self):
        if self.lr <= 0 or self.max_grad_norm <= 0 or self.weight_decay < 0 or self.warmup < 0:
            raise UserError("optimizer: lr and max_grad_norm must be positive, weight_decay and warmup not negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must be in [0, 1), not {list(self.betas)}")

    def factor(self, update: int, updates: int) -> float:
        """What `lr` is multiplied by in update 0 .. updates - 1; the first one already moves."""
        warm = min(1.0, (update + 1) / max(1, self.warmup))
        progress = max(0, update - self.warmup) / max(1, updates - self.warmup)
        decay = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return warm * decay[self.schedule]

    def build(self, parameters: Sequence[nn.Parameter], updates: int) -> tuple[torch.optim.AdamW, LambdaLR]:
        """The optimizer and its learning-rate schedule over this many updates."""
        optimizer = torch.optim.AdamW(parameters, self.lr, self.betas, weight_decay=self.weight_decay)
        return optimizer, LambdaLR(optimizer, lambda update: self.factor(update, updates))


def fast_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Runtime:
    """The processes of a run: who they are, what they share, and what they compute with."""

    def __init__(self, compute: Compute, trackers: Sequence[str] = (), directory: Path | None = None):
        if compute.device == "cuda" and not torch.cuda.is_available():
            raise UserError("compute.device is cuda, but torch sees no GPU: use auto or cpu (unmask doctor)")
        if compute.threads:
            torch.set_num_threads(compute.threads)
        there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
        for name in trackers:
            if name not in there:
                raise UserError(f"trackers: {name!r} is unknown or not installed; there are {', '.join(sorted(there))}")
        self.accelerator = Accelerator(
            cpu=compute.device == "cpu",
            log_with=list(trackers) or None,
            project_dir=None if directory is None else str(directory),
        )
        self.device: torch.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        wanted = compute.precision
        fast = wanted == "auto" and compute.dtype != "float64" and fast_bfloat16(self.device)
        self.precision = "bfloat16" if wanted == "bfloat16" or fast else "float32"
        self.trackers = bool(trackers)

    def autocast(self) -> AbstractContextManager:
        """The context of every forward."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same on each."""
        return self.accelerator.reduce(value, "sum") if self.world > 1 else value  # pyright: ignore[reportReturnType]

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in rank order, on each."""
        return gather_object(items) if self.world > 1 else items

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's contiguous part; the parts differ by at most one item."""
        size, extra = divmod(len(items), self.world)
        start = self.rank * size + min(self.rank, extra)
        return list(items[start : start + size + (self.rank < extra)])

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def start_trackers(self) -> None:
        """Once the run directory is claimed."""
        if self.trackers:
            self.accelerator.init_trackers("unmask")

    def track(self, metrics: dict[str, float], step: int) -> None:
        """Mirrors a row of metrics to the trackers."""
        if self.trackers:
            self.accelerator.log(metrics, step=step)

    def close(self) -> None:
        """Ends the trackers."""
        if self.trackers:
            self.accelerator.end_training()


class Learner:
    """A policy in training.

    Args:
        module: backbone, possibly with adapters; its trainable parameters are those that require a gradient.
        make_policy: from a module to the policy that speaks through it.
        updates: total number of optimizer updates, for the schedule.
        reference: keep the start policy for a KL term.
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
        self.runtime, self.module, self.config = runtime, module.to(runtime.device), optimizer
        self.trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.trainable:
            raise UserError("nothing to train: no parameter requires a gradient")
        self.optimizer, self.schedule = optimizer.build(list(self.trainable.values()), updates)
        self._wrapped = runtime.accelerator.prepare(self.module)
        self._make = make_policy
        adapters = hasattr(module, "disable_adapter")
        self._frozen = None if adapters or not reference else deepcopy(self.module).requires_grad_(False).eval()
        self.updates = 0
        self.module.eval()  # no dropout anywhere: old and new log-probabilities must be comparable

    @property
    def policy(self) -> Policy:
        """For gradients: calls go through the wrapper that reduces them over processes."""
        return self._make(self._wrapped, self.runtime.autocast)

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
        """Around a forward and its backward: reduce gradients only at the last one of an update."""
        return nullcontext() if last else self.runtime.accelerator.no_sync(self._wrapped)

    def update(self) -> float:
        """One optimizer step; returns the gradient norm before clipping.

        Raises:
            RunError: the gradient is not finite.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.trainable.values()), self.config.max_grad_norm))
        if not norm < float("inf"):
            raise RunError(f"gradient norm is {norm} in update {self.updates + 1}: lower optimizer.lr, or use float32")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return norm

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def weights(self) -> dict[str, Tensor]:
        """A copy of the trainable parameters."""
        return {name: p.detach().clone() for name, p in self.trainable.items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Puts trainable parameters back."""
        with torch.no_grad():
            for name, p in self.trainable.items():
                p.copy_(weights[name])

    def save(self, folder: Path, state: dict[str, Any], best: dict[str, Tensor] | None = None) -> None:
        """Writes what is needed to go on as if nothing had happened; whole or not at all."""
        if self.runtime.main:
            temporary = folder.with_name(f".{folder.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file(_contiguous(self.trainable), temporary / "trainable.safetensors")
            if best is not None:
                save_file(_contiguous(best), temporary / "best.safetensors")
            torch.save(self.optimizer.state_dict(), temporary / "optimizer.pt")
            state = {**state, "updates": self.updates, "schedule": self.schedule.state_dict()}
            (temporary / "state.json").write_text(json.dumps(state))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        self.runtime.wait()

    def load(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """The state that `save` wrote, and the best weights."""
        state = json.loads((folder / "state.json").read_text())
        self.load_weights(load_file(folder / "trainable.safetensors"))
        optimizer = torch.load(folder / "optimizer.pt", map_location=self.runtime.device, weights_only=True)
        self.optimizer.load_state_dict(optimizer)
        self.schedule.load_state_dict(state.pop("schedule"))
        self.updates = state.pop("updates")
        best = folder / "best.safetensors"
        return state, load_file(best, device=str(self.runtime.device)) if best.exists() else None


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
