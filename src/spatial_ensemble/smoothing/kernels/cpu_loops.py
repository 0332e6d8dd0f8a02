# mypy: disallow-untyped-decorators=False
"""The loops of the CPU kernel, compiled by numba and written so that LLVM vectorises them.

Preserved tensors and channels cost no memory traffic. Numba compiles each function for the types it is called with;
`Any` stands for one of its numbers, records or arrays.
"""

import ctypes
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, float32, types, uint16, uint32, uint64
from numba.core import cgutils
from numba.extending import intrinsic

CHUNK = 1 << 16  # elements a thread takes at a time
PIECE = 512  # draws of 64 counters, or elements of half precision widened at a time
FLOAT32, BFLOAT16, FLOAT16 = range(3)
SMALL, LARGE, COPY, SEARCH = range(4)  # torch.lerp's formulas for weights below and above one half; weight 1; no update

_jit = numba.njit(error_model="numpy", fastmath={"contract"})  # contract: fused multiply-add, as torch.lerp has it


class Job(ctypes.Structure):
    """What the threads share during one pass."""

    _fields_ = (
        ("next", ctypes.c_int64),  # the next chunk to take; first, for `_take`
        ("chunks", ctypes.c_int64),
        ("rows", ctypes.c_int64),  # address and number of the table's rows
        ("tensors", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("threshold", ctypes.c_int64),
        ("formula", ctypes.c_int64),
        ("factor", ctypes.c_float),
    )


JOB = np.dtype(Job)
ROW = np.dtype(
    [(name, "i8") for name in ("teacher", "student", "half", "dtype", "numel", "first_chunk", "nonfinite")]
    + [(name, "i8") for name in ("drawn", "whole")]
    + [(name, "u8") for name in ("key0", "key1", "rounding0", "rounding1")]
    + [(name, "i8") for name in ("unit_size", "row", "stride", "offset")]
)


def work(job_address: int) -> None:
    """One thread's part of a pass: take chunks until none is left."""
    job = carray(_pointer(job_address), 1, JOB)[0]
    rows = carray(_pointer(job.rows), job.tensors, ROW)
    draws, noise = np.empty(PIECE, np.uint16), np.empty(PIECE, np.uint16)
    wide, mixed = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    half = noise, wide, mixed
    i = 0
    while True:
        chunk = _take(job_address)
        if chunk >= job.chunks:
            return
        while i + 1 < job.tensors and chunk >= rows[i + 1].first_chunk:
            i += 1
        row = rows[i]
        start = (chunk - row.first_chunk) * CHUNK
        stop = min(start + CHUNK, row.numel)
        if job.formula == SEARCH:
            if _holds_nonfinite(row, start, stop, wide):
                row.nonfinite = 1
            continue
        together = row.whole or job.threshold == 0
        if together and row.drawn and job.threshold > 0:
            _fill(draws, 0, row.key0, row.key1, job.step)
            if draws[0] < job.threshold:
                continue
        if together and not row.half:
            _move(row, job, start, stop, wide)
            continue
        while start < stop:  # stretches that are contiguous in the global tensor
            within = start % row.row
            end = min(start + row.row - within, stop)
            element = start // row.row * row.stride + row.offset + within
            if together:
                _move_half(row, job, start, end, element, half)
            elif row.unit_size == 1:
                _move_elements(row, job, start, end, element, draws, half)
            else:
                _move_units(row, job, start, end, element, draws, half)
            start = end


@_jit
def _move_units(row: Any, job: Any, start: int, stop: int, element: int, draws: Any, half: Any) -> None:
    """Move the units of a stretch that are not preserved. `element` is the global index of `start`."""
    origin = start - element
    unit, last = element // row.unit_size, (element + stop - start - 1) // row.unit_size
    while unit <= last:
        _fill(draws, unit, row.key0, row.key1, job.step)
        bound = min((unit // PIECE + 1) * PIECE, last + 1)
        while unit < bound:
            first = unit
            while unit < bound and draws[unit % PIECE] >= job.threshold:
                unit += 1
            begin, end = max(first * row.unit_size + origin, start), min(unit * row.unit_size + origin, stop)
            if row.half:
                _move_half(row, job, begin, end, begin - origin, half)
            else:
                _move(row, job, begin, end, half[1])
            unit += 1  # `unit` is preserved, or past the end
        unit = bound


@_jit
def _move_elements(row: Any, job: Any, start: int, stop: int, element: int, draws: Any, half: Any) -> None:
    """Move the elements of a stretch that are not preserved. `element` is the global index of `start`."""
    highest, formula, factor = uint16(job.threshold - 1), job.formula, job.factor
    while start < stop:
        first = element % PIECE
        n = min(PIECE - first, stop - start)
        _fill(draws, element, row.key0, row.key1, job.step)
        if row.half:
            _mix_half(row, job, start, n, element, half)
            old, new_half = carray(_pointer(row.teacher + 2 * start), n, uint16), half[0]
            for i in range(n):
                moves = uint16(0) - uint16(draws[first + i] > highest)  # a mask: a branch would not vectorise
                old[i] ^= (old[i] ^ new_half[first + i]) & moves
        else:
            t = carray(_pointer(row.teacher + 4 * start), n, float32)
            s = _wide(row.student, row.dtype, start, n, half[1])
            for i in range(n):
                new_float = _mixed(t[i], s[i], formula, factor)
                t[i] = t[i] if draws[first + i] <= highest else new_float
        start += n
        element += n


@_jit
def _move(row: Any, job: Any, start: int, stop: int, wide: Any) -> None:
    """Move all elements of a float32 stretch."""
    formula, factor = job.formula, job.factor  # as locals, or the loop would not vectorise
    while start < stop:
        n = stop - start if row.dtype == FLOAT32 else min(PIECE, stop - start)
        t, s = carray(_pointer(row.teacher + 4 * start), n, float32), _wide(row.student, row.dtype, start, n, wide)
        for i in range(n):
            t[i] = _mixed(t[i], s[i], formula, factor)
        start += n


@_jit
def _move_half(row: Any, job: Any, start: int, stop: int, element: int, half: Any) -> None:
    """Move all elements of a half-precision stretch. `element` is the global index of `start`."""
    while start < stop:
        n = min(PIECE - element % PIECE, stop - start)
        first = element % PIECE
        _mix_half(row, job, start, n, element, half)
        t, new = carray(_pointer(row.teacher + 2 * start), n, uint16), half[0]
        for i in range(n):
            t[i] = new[first + i]
        start += n
        element += n


@_jit
def _mix_half(row: Any, job: Any, start: int, n: int, element: int, half: Any) -> None:
    """New values of n elements within one span of draws, where their draws were; rounded as in rounding.py."""
    noise, s, t = half
    formula, factor, first = job.formula, job.factor, element % PIECE
    _fill(noise, element, row.rounding0, row.rounding1, job.step)
    _widen(row.student, row.dtype, start, n, s)
    _widen(row.teacher, row.dtype, start, n, t)
    for i in range(n):
        t[i] = _mixed(t[i], s[i], formula, factor)
    bits = t.view(np.uint32)
    if row.dtype == BFLOAT16:
        for i in range(n):
            draw = uint32(noise[first + i])
            draw = draw if t[i] == t[i] else uint32(0)  # a NaN's bits may overflow
            noise[first + i] = uint16((bits[i] + draw) >> uint32(16))
        return
    least, zero, shifted = np.float32(2.0**-14), np.float32(0), s.view(np.uint32)
    for i in range(n):
        s[i] = abs(t[i]) + (least if abs(t[i]) < least else zero)
    for i in range(n):
        magnitude = bits[i] & uint32(0x7FFFFFFF)
        rebias = uint32(113 << 10) if magnitude < uint32(113 << 23) else uint32(112 << 10)
        rounded = ((shifted[i] + (uint32(noise[first + i]) >> uint32(3))) >> uint32(13)) - rebias
        rounded = rounded if magnitude < uint32(255 << 23) else uint32(0x7C00)
        rounded = rounded if magnitude <= uint32(255 << 23) else uint32(0x7E00)
        noise[first + i] = uint16(rounded | (bits[i] >> uint32(16) & uint32(0x8000)))


@_jit
def _mixed(t: Any, s: Any, formula: int, factor: Any) -> Any:
    """As in ATen/native/Lerp.h: weight below one half, t + weight (s - t); otherwise s + (weight - 1) (s - t)."""
    base = t if formula == SMALL else s
    mixed = base + factor * (s - t)
    return s if formula == COPY else mixed


@_jit
def _wide(address: int, dtype: int, start: int, n: int, wide: Any) -> Any:
    """n elements as float32: in place, or widened into the buffer `wide`."""
    if dtype == FLOAT32:
        return carray(_pointer(address + 4 * start), n, float32)
    _widen(address, dtype, start, n, wide)
    return wide[:n]


@_jit
def _widen(address: int, dtype: int, start: int, n: int, wide: Any) -> None:
    """wide[i] = element start + i of a tensor in half precision."""
    halves = carray(_pointer(address + 2 * start), n, uint16)
    bits = wide.view(np.uint32)
    if dtype == BFLOAT16:
        for i in range(n):
            bits[i] = uint32(halves[i]) << uint32(16)
        return
    for i in range(n):
        half = uint32(halves[i])
        magnitude = ((half & uint32(0x7FFF)) << uint32(13)) + uint32(112 << 23)  # the exponent rebiased
        if half & uint32(0x7C00) == uint32(0x7C00):  # inf and NaN
            magnitude |= uint32(0x7F800000)
        elif half & uint32(0x7C00) == uint32(0):  # subnormal here, normal in float32
            magnitude = np.float32(float32(half & uint32(0x3FF)) * float32(2.0**-24)).view(np.uint32)
        bits[i] = magnitude | (half & uint32(0x8000)) << uint32(16)


@_jit
def _holds_nonfinite(row: Any, start: int, stop: int, wide: Any) -> Any:
    """Whether all bits of some exponent are set."""
    largest = uint32(0)
    while start < stop:
        n = min(PIECE, stop - start)
        bits = _wide(row.student, row.dtype, start, n, wide).view(np.uint32)
        for i in range(n):
            largest = max(largest, bits[i] & uint32(0x7F800000))
        start += n
    return largest == uint32(0x7F800000)


@_jit
def _fill(draws: Any, index: int, key0: Any, key1: Any, step: int) -> None:
    """draws[i % 512] = draw i, for the 512 that share their 64 counters with `index`."""
    block = uint64(index // PIECE * 64)
    for lane in range(64):
        c0, c1, c2, c3 = _philox(block + uint64(lane), key0, key1, uint64(step))
        draws[lane], draws[64 + lane] = uint16(c0), uint16(c0 >> uint64(16))
        draws[128 + lane], draws[192 + lane] = uint16(c1), uint16(c1 >> uint64(16))
        draws[256 + lane], draws[320 + lane] = uint16(c2), uint16(c2 >> uint64(16))
        draws[384 + lane], draws[448 + lane] = uint16(c3), uint16(c3 >> uint64(16))


@_jit
def _philox(block: Any, key0: Any, key1: Any, step: Any) -> Any:
    """Philox4x32-7 as in draw.py, each word in the low half of 64 bits, as vector units multiply them."""
    low, half = uint64(0xFFFFFFFF), uint64(32)
    c0, c1, c2, c3 = block, block >> half, step, step >> half
    for _ in range(7):
        p0, p1 = (c0 & low) * uint64(0xD2511F53), (c2 & low) * uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ key0, p1, (p0 >> half) ^ c3 ^ key1, p0
        key0, key1 = key0 + uint64(0x9E3779B9) & low, key1 + uint64(0xBB67AE85) & low
    return c0, c1, c2, c3


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    return types.voidptr(types.int64), lambda context, builder, signature, args: builder.inttoptr(
        args[0], cgutils.voidptr_t
    )


@intrinsic
def _take(typing: Any, address: Any) -> Any:
    """Atomically increment the int64 at an address and return its old value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.IntType(64)(1), "monotonic")

    return types.int64(types.int64), generate
