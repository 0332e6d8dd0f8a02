"""The oracle: the rule written as slowly and plainly as it can be, element by element, in Python integers.

Every kernel is held against this file. It shares no code with the package.
"""

import hashlib
import math
from fractions import Fraction

import torch
from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85


def philox4x32(counter: list[int], key: list[int], rounds: int) -> list[int]:
    """Salmon et al. 2011: one round multiplies, swaps and xors four words; the key is bumped between rounds."""
    c, k = list(counter), list(key)
    for r in range(rounds):
        if r:
            k = [(k[0] + W0) % 2**32, (k[1] + W1) % 2**32]
        p0, p1 = c[0] * M0, c[2] * M1
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
    return c


def draw(seed: int, name: str, step: int, index: int, *purpose: str) -> int:
    """The 16-bit draw of one unit: eight to a counter, 64 counters side by side."""
    digest = hashlib.blake2b(repr((seed, name, *purpose)).encode(), digest_size=8).digest()
    key = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]
    group, rest = divmod(index, 512)
    part, lane = divmod(rest, 64)
    block = group * 64 + lane
    words = philox4x32([block % 2**32, block >> 32, step % 2**32, step >> 32], key, rounds=7)
    return (words[part // 2] >> (16 * (part % 2))) % 2**16


def unit_index(shape: tuple[int, ...], unit: str, flat: int) -> int:
    """Which draw element `flat` (row by row) of a tensor of this shape takes."""
    if unit in ("layer", "tensor") or not shape:
        return 0
    if unit == "element":
        return flat
    return flat // (torch.Size(shape).numel() // shape[0])


def preserved(shape: tuple[int, ...], name: str, *, unit: str, seed: int, step: int, preserve_prob: float) -> Tensor:
    """K for one tensor, bool, in its shape. `name` is the module's for unit="layer"."""
    bound = round(preserve_prob * 2**16)
    count = torch.Size(shape).numel()
    draws: dict[int, int] = {}
    for flat in range(count):
        index = unit_index(shape, unit, flat)
        if index not in draws:
            draws[index] = draw(seed, name, step, index)
    keep = [draws[unit_index(shape, unit, flat)] < bound for flat in range(count)]
    return torch.tensor(keep, dtype=torch.bool).reshape(shape)


def smooth(teacher: Tensor, student: Tensor, keep: Tensor, momentum: float) -> Tensor:
    """T <- K T + (1 - K)(m T + (1 - m) S), rounded as torch.lerp rounds."""
    student = student.to(teacher.dtype)
    if momentum == 1:
        return teacher.clone()
    moved = student if momentum == 0 else torch.lerp(teacher, student, 1 - momentum)
    return torch.where(keep, teacher, moved)


def stochastic(x: float, draw: int, dtype: torch.dtype) -> float:
    """x rounded to one of its neighbours in a half-precision dtype, up in magnitude with the probability due."""
    if not math.isfinite(x) or x == 0:
        return x
    least, digits, bits = {torch.bfloat16: (-126, 7, 16), torch.float16: (-14, 10, 13)}[dtype]
    exponent = math.frexp(x)[1] - 1
    size = Fraction(abs(x)) / Fraction(2) ** (max(exponent, least) - digits)  # in units of the spacing at x
    resolved = Fraction(round(size * 2**bits), 2**bits)
    rounded = math.floor(resolved + Fraction(draw >> 16 - bits, 2**bits))
    return math.copysign(float(rounded * Fraction(2) ** (max(exponent, least) - digits)), x)


def smooth_stochastic(teacher: Tensor, student: Tensor, keep: Tensor, momentum: float, seed: int, name: str, step: int):
    """`smooth` in half precision: computed in float32, rounded stochastically unless it copies."""
    moved = smooth(teacher.float(), student.to(teacher.dtype).float(), keep, momentum)
    if momentum in (0, 1):
        return moved.to(teacher.dtype)
    draws = [draw(seed, name, step, i, "rounding") for i in range(teacher.numel())]
    values = [stochastic(x, d, teacher.dtype) for x, d in zip(moved.flatten().tolist(), draws, strict=True)]
    return torch.where(keep, teacher, torch.tensor(values).reshape(teacher.shape).to(teacher.dtype))
