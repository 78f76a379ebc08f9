"""What all samplers share: the state of a half-finished answer, the transfer counts and the drawing of a token.

Counts of tokens live on the host (they follow from the schedule), tokens and confidences on the device: a denoising
step reads nothing back and has no loop over rows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.errors import UserError
from unmask.random import Random
from unmask.samplers.guidance import Guided
from unmask.types import Answer, Canvas, Denoiser, Law

_DRAW_ELEMENTS = 2**26  # noise is made for at most this many (pair, id) entries at a time


def pairs(mask: Bool[Tensor, "b t"], count: int | None = None) -> Int[Tensor, "n 2"]:
    """(row, slot) pairs where `mask` is true, row by row. With `count`, known on the host, nothing is read back."""
    return mask.nonzero() if count is None else torch.nonzero_static(mask, size=count)


def transfer_counts(unknown: Int[Tensor, "b"], steps: int) -> Int[Tensor, "b steps"]:
    """How many of `unknown` slots each of `steps` steps writes: n // S, and one more in the first n % S (LLaDA)."""
    share, extra = unknown[:, None] // steps, unknown[:, None] % steps
    return share + (torch.arange(steps, device=unknown.device) < extra)


def dream_counts(unknown: Int[Tensor, "b"], steps: int) -> Int[Tensor, "b steps"]:
    """How many of `unknown` slots each step writes in Dream's code (arXiv 2508.15487).

    With times t falling evenly from 1 to 0.001, a step writes floor(m (1 - t' / t)) of the m slots that are left, and
    the last one writes all. Rounding down delays: the last step often writes several.
    """
    times = torch.linspace(1, 1e-3, steps + 1, device=unknown.device)
    left, counts = unknown.clone(), []
    for step in range(steps - 1):
        counts.append((left * (1 - times[step + 1] / times[step])).long())
        left = left - counts[-1]
    return torch.stack([*counts, left], 1)


def truncate(logits: Float[Tensor, "n k"], law: Law) -> Float[Tensor, "n k"]:
    """Logits divided by the temperature, with everything that top-k and top-p remove at -inf."""
    if law.temperature not in (0.0, 1.0):
        logits = logits / law.temperature
    if 0 < law.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(law.top_k, dim=-1).values[:, -1:], -torch.inf)
    if law.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of the tokens that are more likely
        cut = torch.empty_like(before, dtype=torch.bool).scatter_(1, order, before >= law.top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens drawn at n pairs, with what is known about the law they came from."""

    token: Int[Tensor, "n"]
    logp: Float[Tensor, "n"] | None
    entropy: Float[Tensor, "n"] | None


def draw(logits: Float[Tensor, "n k"], law: Law, random: Random, record: bool) -> Drawn:
    """One token per row of `logits` by Gumbel-max in float32; `random` holds n places. Temperature 0 is argmax.

    With `record`, the log-probability of the token and the entropy (nats) are those of the law really used.
    """
    logits = truncate(logits.float(), law)
    if law.temperature == 0:
        token = logits.argmax(-1)
        certain = torch.zeros(len(token), device=token.device) if record else None
        return Drawn(token, certain, certain)
    rows = max(1, _DRAW_ELEMENTS // logits.shape[-1])
    token = torch.cat(
        [
            (logits[i : i + rows] + random[i : i + rows].gumbel(logits.shape[-1])).argmax(-1)
            for i in range(0, max(1, len(logits)), rows)
        ]
    )
    if not record:
        return Drawn(token, None, None)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0)).sum(-1)
    return Drawn(token, logp.gather(1, token[:, None])[:, 0], entropy)


class State:
    """The half-finished answers of one sampler call; its tensors are its own, inputs are never written into."""

    def __init__(self, denoiser: Denoiser, canvas: Canvas, random: Random, law: Law, given, record: bool):
        self.denoiser = Guided.of(denoiser, law.guidance)
        self.canvas, self.random, self.law, self.record = canvas, random, law, record
        exists = canvas.slots >= 0
        empty = torch.full_like(canvas.slots, denoiser.k)
        self.x = empty if given is None else torch.where(exists, given, empty)
        self.open = exists & (self.x == denoiser.k)
        self.revealed_at = torch.full_like(self.x, -1)
        self.logp = torch.zeros(self.x.shape, device=self.x.device) if record else None
        self.entropy = torch.zeros(self.x.shape, device=self.x.device) if record else None

    def logits(self, at: Int[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        return self.denoiser(self.canvas, self.x, at)

    def draw(self, logits: Float[Tensor, "n k"], at: Int[Tensor, "n 2"], step: int) -> Drawn:
        random = self.random.fold(step)[at[:, 0]].fold(at[:, 1])
        return draw(logits, self.law, random, self.record)

    def write(self, drawn: Drawn, at: Int[Tensor, "n 2"], step: int) -> None:
        index = (at[:, 0], at[:, 1])
        self.x[index] = drawn.token
        self.revealed_at[index] = step
        self.open[index] = False
        if self.logp is not None and self.entropy is not None and drawn.logp is not None and drawn.entropy is not None:
            self.logp[index] = drawn.logp
            self.entropy[index] = drawn.entropy

    def answer(self) -> Answer:
        return Answer(self.x, self.revealed_at, self.canvas.slots >= 0, self.entropy, self.logp)


def _offset(canvas: Canvas, size: int) -> Int[Tensor, "b 1"] | None:
    """How far into a block of this size each row's first slot is, where the model counts blocks."""
    if canvas.block is None:
        return None
    number = canvas.block.gather(1, canvas.slots.clamp(min=0))
    left = (number == number[:, :1]).sum(1, keepdim=True)  # slots in the model's block in which the prompt ends
    return -left % size


@dataclass(frozen=True)
class Sampler(ABC):
    """Draws answers.

    Args:
        steps: denoising steps = forward passes for one answer.
        temperature: of the token law; 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens up to this mass; 1 keeps all.
        guidance: classifier-free guidance w in (1 + w) c - w u; 0 is off.
        block: slots per block of semi-autoregressive decoding (LLaDA): blocks are filled from left to right, each with
            steps // blocks steps, at least one; 0 is one block. A block-causal model (SDAR) counts its blocks from the
            start of the prompt: there the first block is what is left of the one in which the prompt ends.
    """

    steps: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 0.0
    block: int = 0

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"sampler.steps must be at least 1, not {self.steps}")
        if self.block < 0:
            raise UserError(f"sampler.block must be positive, or 0 for one block, not {self.block}")
        _ = self.law

    @property
    def law(self) -> Law:
        """The law of a token given its logits."""
        return Law(self.temperature, self.top_k, self.top_p, self.guidance)

    def greedy(self) -> "Sampler":
        """The same sampler at temperature 0."""
        return replace(self, temperature=0.0)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        canvas: Canvas,
        random: Random,
        given: Int[Tensor, "b t"] | None = None,
        record: bool = False,
    ) -> Answer:
        """Draws one answer per row of the canvas.

        Args:
            random: b places, one per row; with the step, slot and id they determine every draw.
            given: local ids of tokens that are already known (MASK elsewhere); they are kept.
            record: also keep entropy and log-probability of every token.
        """
        state = State(denoiser, canvas, random, self.law, given, record)
        slots = canvas.slots.shape[1]
        block, steps = self.layout(slots)
        offset = _offset(canvas, block) if self.block else None
        inside = (torch.arange(slots, device=canvas.device) + (0 if offset is None else offset)) // block
        for number in range(slots // block + (offset is not None)):
            self.fill(state, state.open & (inside == number), steps, number * steps)
        return state.answer()

    def layout(self, slots: int) -> tuple[int, int]:
        """Slots per block and steps per block for an answer of this many slots."""
        block = self.block or slots
        if slots % block:
            raise UserError(f"sampler.block {block} does not divide the {slots} answer slots: choose a divisor, or 0")
        blocks = slots // block
        if self.steps > blocks and self.steps % blocks:
            raise UserError(f"sampler.steps {self.steps} is no multiple of the {blocks} blocks of {block} slots")
        return block, max(1, self.steps // blocks)

    @abstractmethod
    def fill(self, state: State, among: Bool[Tensor, "b t"], steps: int, first: int) -> None:
        """Writes a token into every slot `among`, in `steps` steps that are numbered from `first`."""
