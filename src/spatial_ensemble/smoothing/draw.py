"""Random draws as pure functions of (seed, what, step, index).

Masks come from Philox4x32 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with
the seven rounds that the paper finds to pass BigCrush. A key belongs to a seed and a name, a counter is (block, step).
One counter gives eight draws of 16 bits, laid out so that a vector unit needs no shuffle:

    draw i:   block = i // 512 * 64 + i % 64,   part = i % 512 // 64,   word = part // 2,   half = part % 2 (low first)

Nothing here reads or moves a global generator, and nothing depends on what was drawn before.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from spatial_ensemble.seeding import digest

ROUNDS = 7
DRAW_RANGE = 1 << 16  # a draw is an integer in [0, DRAW_RANGE)
BLOCKS = 64  # counters that are laid side by side
SPAN = 8 * BLOCKS  # draws of that many counters

_LOW = 0xFFFFFFFF


def draw_key(seed: int, name: str) -> tuple[int, int]:
    """Philox's key, two 32-bit words, for everything that is drawn under one name."""
    data = digest(seed, name)
    return int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little")


def threshold(preserve_prob: float) -> int:
    """The bound below which a 16-bit draw preserves: P(draw < bound) = p to within 2^-17.

    Only p = 0 gives 0 and only p = 1 gives 2^16, so that a small chance never becomes none.
    """
    if preserve_prob in (0.0, 1.0):
        return int(preserve_prob) * DRAW_RANGE
    return min(max(math.floor(preserve_prob * DRAW_RANGE + 0.5), 1), DRAW_RANGE - 1)


class Place(NamedTuple):
    """Which draws belong to the elements of one tensor, or of one rank's shard of it.

    Element j of the local tensor, counted row by row, is element g = j // row * stride + offset + j % row of the global
    one, and takes draw g // unit_size of `key`; `units` counts the draws of the whole global tensor. `key=None` means
    that it is never preserved.
    """

    key: tuple[int, int] | None
    unit_size: int
    units: int
    row: int
    stride: int
    offset: int

    @property
    def whole(self) -> bool:
        """At most one draw decides on the whole tensor."""
        return self.key is None or self.units <= 1


class Keep(NamedTuple):
    """The masks of one step: what each tensor of a list preserves."""

    places: tuple[Place, ...]
    step: int
    threshold: int


def philox4x32(
    counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int],
    key: tuple[Tensor | int, Tensor | int],
    rounds: int = ROUNDS,
) -> tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int]:
    """Philox4x32 on Python integers or int64 tensors that hold 32-bit words; shapes broadcast.

    Source: Salmon et al. 2011, section 3.3; held to the known-answer vectors of Random123.

    Example:
        >>> [f"{word:08x}" for word in philox4x32((0, 0, 0, 0), (0, 0), rounds=10)]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The product of two 32-bit words may wrap int64, whose 64 bits are right all the same.
        low, high = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (high >> 32 & _LOW) ^ c1 ^ k0, high & _LOW, (low >> 32 & _LOW) ^ c3 ^ k1, low & _LOW
        k0, k1 = k0 + 0x9E3779B9 & _LOW, k1 + 0xBB67AE85 & _LOW
    return c0, c1, c2, c3


def draws_at(key: tuple[Tensor | int, Tensor | int], step: int, index: Tensor) -> Tensor:
    """The draws of any indices: int64 in [0, 2^16), in the shape of `index` (int64) broadcast with the key's words."""
    block = index // SPAN * BLOCKS + index % BLOCKS
    part = index % SPAN // BLOCKS
    words = torch.stack(_words(key, step, block))
    word = words.gather(0, (part // 2).expand(words.shape[1:])[None])[0]
    return word >> part % 2 * 16 & 0xFFFF


def draws_between(key: tuple[int, int], step: int, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """The draws of the indices start, ..., stop - 1: int64 in [0, 2^16), eight to a counter."""
    first, last = start // SPAN, -(-stop // SPAN)
    block = torch.arange(first * BLOCKS, last * BLOCKS, device=device).view(-1, BLOCKS)
    halves = [half for word in _words(key, step, block) for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, 1).flatten()[start - first * SPAN : stop - first * SPAN]


def _words(key: tuple[Tensor | int, Tensor | int], step: int, block: Tensor) -> tuple[Tensor, ...]:
    return philox4x32((block & _LOW, block >> 32, step & _LOW, step >> 32), key)  # type: ignore[return-value]
