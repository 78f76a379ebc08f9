"""Stateless random numbers: every draw is a hash of where it is used, so nothing has to be seeded, saved or restored.

A `Random` is a place in a tree of counters. `fold` goes one level down, `uniform` and `gumbel` read numbers below the
place. The levels are, by convention, (seed, purpose, step, prompt index, copy, denoising step or epoch and view, slot,
id). Rank, batch composition, device and resume are not among them and therefore cannot change a draw.

Two mixers are used. A place is 64 bits wide and is folded with the finaliser of SplitMix64 (Steele, Lea, Flood 2014);
these tensors are small (one number per row or slot). The last level may be a vocabulary of 10^5 ids per slot, so it
costs one 32-bit multiply-xorshift hash (constants: "lowbias32", Wellons 2018) done in place, whose two key words come
from the place: one is added before the first round and one is mixed in between the rounds, so that two slots never
share a shifted copy of the same sequence.
"""

import zlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, odd, as a signed 64-bit integer
_MIX1, _MIX2 = -4658895280553007687, -7723592293110705685  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WEYL32, _ROUND1, _ROUND2 = -1640531535, 0x7FEB352D, -2073254261  # 0x9E3779B1, lowbias32's multipliers
_LARGEST_BELOW_ONE = 1.0 - 2.0**-24


def _shift64(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(x: Tensor) -> Tensor:
    x = (x ^ _shift64(x, 30)) * _MIX1
    x = (x ^ _shift64(x, 27)) * _MIX2
    return x ^ _shift64(x, 31)


def _xorshift32_(x: Tensor, bits: int, scratch: Tensor) -> None:
    """x ^= x >>> bits, in place; `scratch` has the shape of x."""
    torch.bitwise_right_shift(x, bits, out=scratch)
    scratch.bitwise_and_((1 << (32 - bits)) - 1)
    x.bitwise_xor_(scratch)


@dataclass(frozen=True, slots=True)
class Random:
    """A place in the tree of random numbers; `state` holds one place per entry, of any shape."""

    state: Int[Tensor, "*place"]

    @staticmethod
    def root(seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu") -> "Random":
        """The place (seed, purpose, *counters), of shape []. Purposes with other names give unrelated numbers."""
        place = Random(torch.tensor(seed, dtype=torch.int64, device=device)).fold(zlib.crc32(purpose.encode()))
        for counter in counters:
            place = place.fold(counter)
        return place

    def fold(self, counter: int | Int[Tensor, "..."]) -> "Random":
        """One level down; the counter broadcasts against the place."""
        return Random(_mix64((self.state + counter) * _GOLDEN + _MIX1))

    def __getitem__(self, index: slice | Tensor) -> "Random":
        """The places that `index` selects."""
        return Random(self.state[index])

    def __len__(self) -> int:
        return len(self.state)

    def bits(self, n: int) -> Int[Tensor, "*place n"]:
        """`n` numbers of 32 random bits (int32) below each place."""
        ids = torch.arange(n, dtype=torch.int32, device=self.state.device) * _WEYL32
        low, high = self.state.to(torch.int32)[..., None], (self.state >> 32).to(torch.int32)[..., None]
        x = ids + low
        scratch = torch.empty_like(x)
        _xorshift32_(x, 16, scratch)
        x.mul_(_ROUND1).bitwise_xor_(high)
        _xorshift32_(x, 15, scratch)
        x.mul_(_ROUND2)
        _xorshift32_(x, 16, scratch)
        return x

    def uniform(self, n: int) -> Float[Tensor, "*place n"]:
        """`n` numbers in (0, 1), float32. Steps are 2^-31 near 0, where logarithms need them; 1 is never reached."""
        u = self.bits(n).bitwise_and_(0x7FFFFFFF).float()
        return u.add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST_BELOW_ONE)

    def gumbel(self, n: int) -> Float[Tensor, "*place n"]:
        """`n` standard Gumbel numbers, float32: argmax(logits + gumbel) is a draw from softmax(logits).

        `-log(-log1p(-u))` takes the fine end of `u` for the upper tail, the one that decides an argmax.
        """
        return self.uniform(n).neg_().log1p_().neg_().log_().neg_()
