"""One transformer for every family of masked language models, under neutral names.

Pre-norm blocks, rotary positions, gated MLP; attention is full, or full inside blocks and causal between them. A family
(`families.py`) says by which configuration and under which tensor names. Shape letters: `b` rows, `l` positions, `n`
asked rows, `k` head rows, `d` width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**24
"""Logits that exist at once while log-probabilities of targets are computed: 64 MiB of float32."""


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Shape and arithmetic of a `Backbone`.

    Args:
        vocab: rows of the embedding and of the head.
        dim: width of the residual stream.
        layers: blocks.
        heads, kv_heads: query heads, key and value heads; the first is a multiple of the second.
        head_dim: width of a head, even.
        ffn: width of each MLP projection.
        activation, gated: the MLP is down(activation(gate x) * up x), or down(activation(up x)) without a gate.
        eps: of the RMS norms.
        theta: base of the rotary frequencies.
        qkv_bias: query, key and value projections have a bias.
        o_bias: the output projection of the attention has a bias.
        bias: every projection and the head have a bias.
        norm_bias: the norms have a bias.
        qk_norm: RMS norm of queries and keys before the rotation: over each head, or over the full projection.
        rope_fp32: rotate in float32; otherwise cos and sin are rounded to the activations' dtype.
        tie: the head is the embedding matrix.
        scale_logits: logits are multiplied by dim ** -0.5.
        emb_scale: embeddings are multiplied by dim ** 0.5.
        shift: the output at position i - 1 predicts token i (Dream); position 0 uses its own output.
        count_real: positions count the visible tokens of a row only, and hidden ones sit at 1 (Dream, SDAR).
        block: positions per block of block-causal attention (SDAR): a token sees its own block and those before; 0 is
            full attention.
        padding_row: this row of the embedding gets no gradient as an input, like the original's `padding_idx`.
    """

    vocab: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float
    theta: float
    activation: Literal["silu", "gelu", "relu"] = "silu"
    gated: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    bias: bool = False
    norm_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    rope_fp32: bool = True
    tie: bool = False
    scale_logits: bool = False
    emb_scale: bool = False
    shift: bool = False
    count_real: bool = False
    block: int = 0
    padding_row: int | None = None


class Backbone(nn.Module):
    """Masked language model: token ids in; logits, or log-probabilities of given tokens, out.

    Attributes:
        config: its `BackboneConfig`.
        checkpointing: recompute each block in the backward pass instead of keeping its activations; in eval mode too,
            because there is no dropout and the modes are the same.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.emb = nn.Embedding(config.vocab, config.dim, padding_idx=config.padding_row)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.eps, config.norm_bias)
        if not config.tie:
            self.head = nn.Linear(config.dim, config.vocab, bias=config.bias)

    @property
    def device(self) -> torch.device:
        return self.emb.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.emb.weight.dtype

    def forward(
        self,
        ids: Int[Tensor, "b l"],
        attend: Bool[Tensor, "b l"] | None = None,
        positions: Int[Tensor, "b l"] | None = None,
        *,
        block: Int[Tensor, "b l"] | None = None,
        rows: Int[Tensor, "n"] | None = None,
        vocab: tuple[int, int] | None = None,
        targets: Int[Tensor, "n"] | None = None,
        banned: Bool[Tensor, "k"] | None = None,
        temperature: float = 1.0,
    ) -> Float[Tensor, "..."]:
        """Logits of tokens, or log-probabilities of `targets`.

        Whatever the family, the answer for a position is about the token at that position.

        Args:
            ids: tokens.
            attend: False hides a position from every query; None hides nothing and allows the fastest kernels.
            positions: of the rotation; None is 0 .. l - 1, or counts the visible tokens if the config says so.
            block: block of each position: a token sees the blocks up to its own. None is the config's rule.
            rows: indices into the flattened b * l positions whose tokens are asked for; None asks for all. The last
                block's output projection and MLP, and the head, run for these only.
            vocab: rows (start, stop) of the head that take part; None is all.
            targets: for each asked row a token, counted from `start`.
            banned: tokens of the slice that are impossible, at -inf.
            temperature: divides the logits of log-probabilities (targets only).

        Returns:
            Without targets the logits [n k] ([b l k] when `rows` is None); with targets
            log softmax(logits / temperature)[target], [n], for which at most `CHUNK_ELEMENTS` logits exist at once, in
            the forward and in the backward pass. Float32, or float64 if the model is.
        """
        config = self.config
        if positions is None:
            positions = self._positions(ids, attend)
        cos, sin = self._rotation(positions)
        if block is None and config.block:
            block = positions // config.block
        mask = _mask(attend, block)
        x = self.emb(ids)
        if config.emb_scale:
            x = x * config.dim**0.5
        source = rows if rows is None or not config.shift else rows - (rows % ids.shape[1] != 0).to(rows.dtype)
        recompute = self.checkpointing and torch.is_grad_enabled()
        last = config.layers - 1
        for index, layer in enumerate(self.blocks):
            wanted = source if index == last else None
            if recompute:
                x = checkpoint(layer, x, cos, sin, mask, wanted, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask, wanted)
        x = self.norm(x)
        if rows is None and config.shift:
            x = torch.cat([x[:, :1], x[:, :-1]], 1)

        weight, bias = self._head(vocab)
        scale = config.dim**-0.5 if config.scale_logits else 1.0
        if targets is not None:
            x = x.reshape(-1, config.dim)
            compute = _compute_dtype(weight)
            return _TargetLogProbabilities.apply(x, weight, bias, targets, banned, scale, temperature, compute)
        logits = _logits(x, weight, bias, scale)
        return logits if banned is None else logits.masked_fill(banned, -torch.inf)

    def logits(self, ids: Int[Tensor, "b l"], attend: Tensor | None = None) -> Float[Tensor, "b l V"]:
        """Logits of every token at every position, aligned: those at i are about token i, whatever the family.

        `attend` [b l] (bool or 0 / 1) hides pads from every query; None shows them, as code that ignores padding does.
        """
        return self(ids, None if attend is None else attend.bool())

    def _positions(self, ids: Tensor, attend: Tensor | None) -> Int[Tensor, "_ l"]:
        if attend is None or not self.config.count_real:
            return torch.arange(ids.shape[1], device=ids.device)[None]
        return (attend.cumsum(1) - 1).masked_fill(~attend, 1)

    def _rotation(self, positions: Int[Tensor, "_ l"]) -> tuple[Tensor, Tensor]:
        """cos and signed sin of the rotary angles, [b or 1, l, 1, head_dim].

        They come from the config at run time: a buffer would be lost on the meta device. The two halves of a head are
        rotated against each other; with the first half of sin negated that is `x * cos + roll(x, head_dim / 2) * sin`.
        """
        config, full = self.config, torch.promote_types(self.dtype, torch.float32)
        exponent = torch.arange(0, config.head_dim, 2, device=positions.device).to(full) / config.head_dim
        angle = positions[..., None, None].to(full) * (1.0 / config.theta**exponent)
        cos, sin = angle.cos(), angle.sin()
        dtype = full if config.rope_fp32 else _compute_dtype(self.emb.weight)
        return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)

    def _head(self, vocab: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
        weight, bias = (self.emb.weight, None) if self.config.tie else (self.head.weight, self.head.bias)
        if vocab is None or vocab == (0, self.config.vocab):  # the parameter itself: autocast keeps its cast copy
            return weight, bias
        start, stop = vocab
        return weight[start:stop], None if bias is None else bias[start:stop]


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to its input."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.head_dim, self.grouped, self.gated = config.head_dim, config.heads // config.kv_heads, config.gated
        self.qk_norm, self.activation = config.qk_norm, _ACTIVATIONS[config.activation]
        query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
        qkv_bias = config.qkv_bias or config.bias
        self.attn_norm = RMSNorm(config.dim, config.eps, config.norm_bias)
        self.q = nn.Linear(config.dim, query, bias=qkv_bias)
        self.k = nn.Linear(config.dim, key, bias=qkv_bias)
        self.v = nn.Linear(config.dim, key, bias=qkv_bias)
        self.o = nn.Linear(query, config.dim, bias=config.o_bias or config.bias)
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.q_norm = RMSNorm(config.head_dim if per_head else query, config.eps, config.norm_bias)
            self.k_norm = RMSNorm(config.head_dim if per_head else key, config.eps, config.norm_bias)
        self.mlp_norm = RMSNorm(config.dim, config.eps, config.norm_bias)
        if config.gated:
            self.gate = nn.Linear(config.dim, config.ffn, bias=config.bias)
        self.up = nn.Linear(config.dim, config.ffn, bias=config.bias)
        self.down = nn.Linear(config.ffn, config.dim, bias=config.bias)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        cos: Float[Tensor, "_ l 1 h"],
        sin: Float[Tensor, "_ l 1 h"],
        mask: Bool[Tensor, "_ 1 _ l"] | None,
        rows: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Hidden states [b l d], or [n d] of the flattened positions `rows` only."""
        attended = self._attention(self.attn_norm(x), cos, sin, mask)
        if rows is not None:
            attended, x = attended.flatten(0, 1).index_select(0, rows), x.flatten(0, 1).index_select(0, rows)
        x = x + self.o(attended)
        h = self.mlp_norm(x)
        if self.gated:
            return x + self.down(self.activation(self.gate(h)) * self.up(h))
        return x + self.down(self.activation(self.up(h)))

    def _attention(self, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.q(h), self.k(h), self.v(h)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (_rotate(t.to(cos.dtype), cos, sin).to(v.dtype) for t in (q, k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        share = self.grouped > 1
        if share and mask is not None and q.is_cuda:
            # No fused CUDA kernel takes a mask and grouped heads together: the fallback would keep l x l scores.
            k, v, share = (*(t.repeat_interleave(self.grouped, 1) for t in (k, v)), False)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=share)
        return attended.transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    """x / rms(x) * weight (+ bias): statistics in float32 at least, rounded to the input's dtype before the weight."""

    def __init__(self, dim: int, eps: float, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.eps = eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        y = self.weight * F.rms_norm(x, self.weight.shape, eps=self.eps)
        return y if self.bias is None else y + self.bias


_ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


def _mask(attend: Bool[Tensor, "b l"] | None, block: Int[Tensor, "_ l"] | None) -> Bool[Tensor, "_ 1 _ l"] | None:
    """Which keys a query sees; None is all. No row is empty: a pad before the first block would have no number."""
    if block is None:
        return None if attend is None else attend[:, None, None, :]
    mask = block[:, None, :, None] >= block[:, None, None, :]
    if attend is None:
        return mask
    itself = torch.eye(attend.shape[1], dtype=torch.bool, device=attend.device)
    return (mask & attend[:, None, None, :]) | itself


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which this weight is multiplied; autocast leaves float64 alone."""
    kind = weight.device.type
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    if scale != 1:
        logits = logits * scale
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _TargetLogProbabilities(torch.autograd.Function):
    """log softmax((hidden weight^T + bias) scale / temperature)[targets] without the n x k matrix.

    Logits live for a chunk of rows and are computed again in the backward pass, where with p the softmax and g the
    incoming gradient d logits = g (onehot(target) - p) scale / temperature. The gradient of the weight is summed in
    float32.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, banned, scale, temperature, compute):
        ctx.save_for_backward(hidden, weight, bias, targets, banned)
        ctx.scale, ctx.temperature, ctx.compute = scale, temperature, compute
        w, b = weight.to(compute), None if bias is None else bias.to(compute)
        chosen = []
        size = _rows_per_chunk(len(weight))
        for h, target in zip(hidden.split(size), targets.split(size), strict=True):
            logits = _scored(h.to(compute), w, b, banned, scale, temperature)
            chosen.append(logits.log_softmax(-1).gather(1, target[:, None])[:, 0])
        return torch.cat(chosen)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, incoming):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, targets, banned = ctx.saved_tensors
        compute = ctx.compute
        w, b = weight.to(compute), None if bias is None else bias.to(compute)
        total = torch.promote_types(weight.dtype, torch.float32)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=total) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=total) if bias is not None and ctx.needs_input_grad[2] else None
        size = _rows_per_chunk(len(weight))
        incoming = incoming * (ctx.scale / ctx.temperature)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            h, g = hidden[part].to(compute), incoming[part, None]
            d = _scored(h, w, b, banned, ctx.scale, ctx.temperature).softmax(-1).mul_(-g)
            d.scatter_add_(1, targets[part, None], g)
            if banned is not None:
                d.masked_fill_(banned, 0)
            if d_bias is not None:
                d_bias += d.sum(0)
            d = d.to(compute)
            if d_hidden is not None:
                d_hidden[part] = d @ w
            if d_weight is not None and compute == total:
                d_weight.addmm_(d.T, h)
            elif d_weight is not None:
                d_weight += d.T @ h
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None or bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None, None


def _rows_per_chunk(k: int) -> int:
    return max(1, CHUNK_ELEMENTS // k)


def _scored(hidden, weight, bias, banned, scale: float, temperature: float) -> Tensor:
    """What the softmax is taken of."""
    logits = _logits(hidden, weight, bias, scale)
    if temperature != 1:
        logits = logits / temperature
    return logits if banned is None else logits.masked_fill_(banned, -torch.inf)
