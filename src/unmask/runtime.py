"""Everything that knows about processes and devices: the only user of Accelerate."""

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from unmask.errors import UserError


@dataclass(frozen=True)
class Compute:
    """Where and how the numbers are made, and what happens when they do not fit.

    Args:
        device: auto takes a GPU if there is one.
        dtype: of the weights in memory; auto keeps the checkpoint's for adapters and takes float32 for full training.
        precision: of the forward pass; auto takes bfloat16 where the device computes it fast.
        micro_batch: answers per forward with gradients; 0 is all of an update.
        rollout_batch: answers per forward of the sampler and of scoring; 0 is all.
        threads: CPU threads of torch; 0 is its own choice.
        checkpointing: recompute activations in the backward pass: less memory, one more forward.
        shard: what is divided over the processes: nothing (DDP); zero2, gradients and moments, while weights are
            gathered once per update and stay for its rollouts; zero3, the weights too (both by FSDP2). The results are
            the same.
        out_of_memory: when a batch does not fit, stop, or halve it and go on (one process only).
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float64", "float32", "bfloat16"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch: int = 0
    rollout_batch: int = 0
    threads: int = 0
    checkpointing: bool = False
    shard: Literal["none", "zero2", "zero3"] = "none"
    out_of_memory: Literal["stop", "halve"] = "stop"

    def __post_init__(self):
        if self.micro_batch < 0 or self.rollout_batch < 0:
            raise UserError("compute.micro_batch and compute.rollout_batch must be positive, or 0 for all")
        if not 0 <= self.threads <= 4096:
            raise UserError(f"compute.threads must be in 1 .. 4096, or 0 for torch's own choice, not {self.threads}")


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

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
        """The optimizer; whoever steps it sets the learning rate."""
        return torch.optim.AdamW(parameters, self.lr, self.betas, weight_decay=self.weight_decay)


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
        for flag, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
            if os.environ.get(flag, "false").lower() in ("true", "1"):
                raise UserError(
                    f"accelerate was told to shard with {name}; unmask shards by itself: launch with a plain multi-GPU "
                    "configuration and --compute.shard zero3"
                )
        self.accelerator = Accelerator(
            # told so on a machine without GPU too: there Accelerate takes several processes for strangers otherwise
            cpu=compute.device == "cpu" or not torch.cuda.is_available(),
            log_with=list(trackers) or None,
            project_dir=None if directory is None else str(directory),
        )
        self.device: torch.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if self.world != started:
            raise UserError(f"{started} processes were started, but accelerate sees {self.world}: launch with torchrun")
        if compute.out_of_memory == "halve" and self.world > 1:
            raise UserError(
                f"compute.out_of_memory: halve works in one process, not in {self.world}: lower compute.micro_batch"
            )
        wanted = compute.precision
        fast = wanted == "auto" and compute.dtype != "float64" and fast_bfloat16(self.device)
        self.precision = "bfloat16" if wanted == "bfloat16" or fast else "float32"
        self.trackers = bool(trackers)
        self.sharded = compute.shard != "none" and self.world > 1
        self._keep_gathered = compute.shard == "zero2"

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on its device, so wrapped that gradients are averaged over processes.

        Sharded, every block (an element of the `blocks` of one of its modules) is gathered by itself, the rest is one
        more unit. Parameters become sharded tensors in place.
        """
        if not self.sharded:
            return self.accelerator.prepare(module.to(self.device))
        mesh = init_device_mesh(self.device.type, (self.world,))
        holder = next(
            (part for part in module.modules() if isinstance(getattr(part, "blocks", None), nn.ModuleList)), module
        )
        for block in getattr(holder, "blocks", ()):
            fully_shard(block, mesh=mesh, reshard_after_forward=not self._keep_gathered)
        fully_shard(holder, mesh=mesh)
        return module.to(self.device)

    def accumulating(self, wrapped: nn.Module, last: bool) -> AbstractContextManager:
        """Around a forward and its backward: copies reduce their gradients only at the last one of an update."""
        if last or self.sharded:  # shards add what is reduced at once: whole gradients exist for one block only
            return nullcontext()
        return self.accelerator.no_sync(wrapped)

    @property
    def memory(self) -> int:
        """Bytes that this process's device has, used or free."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

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

    def most(self, count: int) -> int:
        """The largest of the processes' counts."""
        return max(self.gather([count]))

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(int(flag), device=self.device)))

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

    def leave(self) -> None:
        """The last thing that a process of many does: none goes before all are done."""
        if self.world > 1:
            self.wait()
            torch.distributed.destroy_process_group()
