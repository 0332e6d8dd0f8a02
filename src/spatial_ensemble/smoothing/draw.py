"""Random draws as pure functions of (seed, name, step, index).

Masks come from Philox4x32 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with
seven rounds, the fewest that pass BigCrush in the paper. The key is a hash of seed and name, the counter is
(block, step). One counter gives eight draws of 16 bits, laid out so that vector units need no shuffle:

    draw i:   block = i // 512 * 64 + i % 64,   part = i % 512 // 64,   word = part // 2,   half = part % 2 (low first)

No global generator is read or advanced, and no draw depends on an earlier one.
"""

import math

import torch
from torch import Tensor

from spatial_ensemble.seeding import digest

ROUNDS = 7
DRAW_RANGE = 1 << 16  # a draw is an integer in [0, DRAW_RANGE)
BLOCKS = 64  # counters laid side by side
SPAN = 8 * BLOCKS  # draws of that many counters

_LOW = 0xFFFFFFFF


def draw_key(seed: int, *name: str) -> tuple[int, int]:
    """Philox's key for one name, perhaps with a purpose: two 32-bit words."""
    data = digest(seed, *name)
    return int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little")


def threshold(preserve_prob: float) -> int:
    """The bound below which a 16-bit draw preserves: P(draw < bound) = p to within 2^-17.

    Only p = 0 gives 0 and only p = 1 gives 2^16, so a small probability never rounds to none.
    """
    if preserve_prob in (0.0, 1.0):
        return int(preserve_prob) * DRAW_RANGE
    return min(max(math.floor(preserve_prob * DRAW_RANGE + 0.5), 1), DRAW_RANGE - 1)


def philox4x32(
    counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int],
    key: tuple[Tensor | int, Tensor | int],
    rounds: int = ROUNDS,
) -> tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int]:
    """Philox4x32 on Python integers or int64 tensors of 32-bit words; shapes broadcast.

    Source: Salmon et al. 2011, section 3.3; tested against the known-answer vectors of Random123.

    Example:
        >>> [f"{word:08x}" for word in philox4x32((0, 0, 0, 0), (0, 0), rounds=10)]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The product of two 32-bit words may overflow int64; its 64 bits are right all the same.
        low, high = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (high >> 32 & _LOW) ^ c1 ^ k0, high & _LOW, (low >> 32 & _LOW) ^ c3 ^ k1, low & _LOW
        k0, k1 = k0 + 0x9E3779B9 & _LOW, k1 + 0xBB67AE85 & _LOW
    return c0, c1, c2, c3


def draws_at(key: tuple[Tensor | int, Tensor | int], step: int, index: Tensor) -> Tensor:
    """The draws at any indices: int64 in [0, 2^16), in the shape of `index` (int64) broadcast with the key's words."""
    block = index // SPAN * BLOCKS + index % BLOCKS
    part = index % SPAN // BLOCKS
    words = torch.stack(_words(key, step, block))
    word = words.gather(0, (part // 2).expand(words.shape[1:])[None])[0]
    return word >> part % 2 * 16 & 0xFFFF


def draws_between(key: tuple[int, int], step: int, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """The draws at the indices start, ..., stop - 1: int64 in [0, 2^16), eight to a counter."""
    first, last = start // SPAN, -(-stop // SPAN)
    block = torch.arange(first * BLOCKS, last * BLOCKS, device=device).view(-1, BLOCKS)
    halves = [half for word in _words(key, step, block) for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, 1).flatten()[start - first * SPAN : stop - first * SPAN]


def _words(key: tuple[Tensor | int, Tensor | int], step: int, block: Tensor) -> tuple[Tensor, ...]:
    return philox4x32((block & _LOW, block >> 32, step & _LOW, step >> 32), key)  # type: ignore[return-value]
