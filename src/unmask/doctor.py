"""`unmask doctor`: what this machine can do, and what a model needs."""

import importlib.util
import os
import platform
import shutil
from dataclasses import fields
from importlib import metadata

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from unmask.errors import UserError
from unmask.generate import DEFAULT_LENGTH
from unmask.models import Model, load
from unmask.models.backbone import Backbone
from unmask.models.lora import ROLES
from unmask.runtime import fast_bfloat16
from unmask.samplers import Sampler

_EXTRAS = {"data": "datasets", "trackers": "tensorboard", "remote": "httpx", "serve": "fastapi"}
_GIB = 2**30


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    return table


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def report_machine() -> None:
    """Prints versions, devices, precision, threads and extras."""
    table = _table("This machine")
    table.add_row("python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    names = ("unmask", "torch", "transformers", "accelerate", "peft")
    table.add_row("packages", ", ".join(f"{name} {metadata.version(name)}" for name in names))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            table.add_row(f"cuda:{index}", f"{about.name}, {about.total_memory / _GIB:.0f} GiB")
    else:
        hint = (
            "" if torch.version.cuda is None else " (torch is a CUDA build: check the driver, or install a CPU build)"
        )
        table.add_row("gpu", f"none that torch can see{hint}")
    cpu = torch.device("cpu")
    table.add_row("cpu", f"{os.cpu_count()} cores, {_memory() / _GIB:.0f} GiB, {torch.get_num_threads()} torch threads")
    table.add_row("bfloat16 on cpu", "fast, used by default" if fast_bfloat16(cpu) else "slow, float32 is used")
    table.add_row("disk", f"{shutil.disk_usage('.').free / _GIB:.0f} GiB free here")
    for extra, module in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        table.add_row(f"extra {extra}", "installed" if there else f"missing: pip install 'unmask[{extra}]'")
    Console().print(table)


def report_model(
    source: str,
    length: int = 512,
    batch: int = 8,
    rank: int = 64,
    revision: str | None = None,
    image_tokenizer: str | None = None,
) -> None:
    """Prints family, size, special ids, what the rows of the vocabulary are, and an estimate of memory.

    The weights are not read: only their names, shapes and dtypes.

    Args:
        source, revision, image_tokenizer: see `unmask.load`.
        length, batch: tokens of a canvas and canvases per forward, for the estimates.
        rank: of LoRA adapters on all projections.

    Raises:
        UserError: a number below 1; as `unmask.load`.
    """
    for name, value in (("length", length), ("batch", batch), ("rank", rank)):
        if value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    model = load(source, device="meta", revision=revision, image_tokenizer=image_tokenizer)
    backbone, ids, shape = model.backbone, model.ids, model.backbone.config
    parameters = sum(p.numel() for p in backbone.parameters())
    table = _table(source)
    table.add_row("family", f"{model.family.name}, {shape.layers} layers, width {shape.dim}")
    heads = f"{shape.heads} heads" + (f" on {shape.kv_heads} keys" if shape.kv_heads < shape.heads else "")
    seen = f"full inside blocks of {shape.block}, causal between them" if shape.block else "full"
    shifted = ", logits shifted by one (aligned here)" if shape.shift else ""
    table.add_row("attention", f"{heads} of {shape.head_dim}, {seen}{shifted}")
    table.add_row("parameters", f"{parameters:,} in {str(backbone.dtype).removeprefix('torch.')}")
    table.add_row("vocabulary", f"{model.vocab:,} rows, tokenizer {len(model.tokenizer):,}")
    shown = {"mask": ids.mask, "eos": ids.eos, "pad": ids.pad, "bos": ids.bos, "end of turn": ids.end_of_turn}
    table.add_row("special ids", ", ".join(f"{name} {number}" for name, number in shown.items()))
    banned = int(model.answering("text").modality.banned.sum())
    table.add_row("text answers", f"{model.vocab - banned:,} ids; banned are the mask and all that is no text")
    if model.images is not None:
        start, stop = model.images.vocab
        table.add_row("image answers", f"{model.images.codes:,} ids, {start} to {stop - 1}")
        table.add_row("image roles", ", ".join(f"{role} {number}" for role, number in model.images.roles.items()))
        tokenizer = model.image_tokenizer
        told = "none: pictures are refused (--image_tokenizer)"
        if tokenizer is not None:
            told = f"{type(tokenizer).__name__}, a code for {tokenizer.factor} x {tokenizer.factor} pixels"
        table.add_row("image tokenizer", told)
    template = "from the tokenizer" if model.tokenizer.chat_template else "none: add a chat_template.jinja for prompts"
    table.add_row("chat template", template)
    table.add_row("family's sampler", f"{_options(model.sampler(DEFAULT_LENGTH))} (for {DEFAULT_LENGTH} slots)")
    for what, size in memory(model, length, batch, rank).items():
        table.add_row(what, f"about {_size(size)} at {batch} x {length} tokens")
    Console().print(table, soft_wrap=True)


def _options(sampler: Sampler) -> str:
    """A sampler with what differs from its class's defaults."""
    kind = type(sampler)
    changed = {field.name: getattr(sampler, field.name) for field in fields(sampler)}
    usual = kind()
    return f"{kind.__name__}: " + ", ".join(f"{k} {v}" for k, v in changed.items() if v != getattr(usual, k))


def _size(size: float) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"


def memory(model: Model, length: int, batch: int, rank: int) -> dict[str, float]:
    """Bytes, estimated: weights, gradients, AdamW moments, activations that are kept for the backward pass."""
    backbone = model.backbone
    parameters = sum(p.numel() for p in backbone.parameters())
    width = backbone.dtype.itemsize
    tokens = length * batch
    kept = tokens * backbone.config.layers * _kept_per_token(backbone) * 2
    roles = {name for names in ROLES.values() for name in names}
    adapters = sum(
        rank * sum(module.weight.shape)
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-1] in roles
    )
    return {
        "inference": parameters * width + tokens * backbone.config.dim * 8 * 2,
        f"LoRA, rank {rank}": parameters * width + adapters * 16 + kept,
        "full, AdamW in float32": parameters * 16 + kept,
    }


def _kept_per_token(backbone: Backbone) -> int:
    """Numbers that one block keeps per token: inputs of its projections, q, k, v, and the MLP's tensors."""
    config = backbone.config
    heads = (config.heads + 2 * config.kv_heads) * config.head_dim
    return 4 * config.dim + 2 * heads + (3 if config.gated else 2) * config.ffn
