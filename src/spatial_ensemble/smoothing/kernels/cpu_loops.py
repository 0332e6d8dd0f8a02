# mypy: disallow-untyped-decorators=False
"""The loops of the CPU kernel, for numba to compile, written so that LLVM makes vector instructions of them.

512 draws go into a buffer on the stack, then as many weights are moved. A preserved tensor or channel costs no memory
traffic. Numba compiles each function for the types that it is called with; `Any` stands for one of its numbers, records
or arrays.
"""

import ctypes
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, float32, int64, types, uint16, uint32, uint64
from numba.core import cgutils
from numba.extending import intrinsic

CHUNK = 1 << 16  # elements that a thread takes at a time
PIECE = 512  # elements whose draws or widened weights lie on the stack: the draws of 64 counters
STEP, UNIT_STEP = 128, 256  # elements of tensors, of units, that are fetched while as many before them are moved
FEW = 8  # fewer draws than this are made one by one
FLOAT32, BFLOAT16, FLOAT16 = range(3)  # dtypes of a student
SMALL, LARGE, COPY = range(3)  # torch.lerp's two formulas, for weights below one half and above; and weight 1


class Job(ctypes.Structure):
    """What the threads share during one update."""

    _fields_ = (
        ("next", ctypes.c_int64),  # the chunk to be taken next; first, for `_take`
        ("chunks", ctypes.c_int64),
        ("rows", ctypes.c_int64),  # address and number of the table's rows
        ("tensors", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("threshold", ctypes.c_int64),
        ("zero", ctypes.c_int64),  # always 0, see `_move_elements`
        ("formula", ctypes.c_int64),
        ("factor", ctypes.c_float),
    )


JOB = np.dtype(Job)
ROW = np.dtype(
    [(name, "i8") for name in ("teacher", "student", "dtype", "numel", "first_chunk", "nonfinite", "drawn", "whole")]
    + [("key0", "u8"), ("key1", "u8")]
    + [(name, "i8") for name in ("unit_size", "row", "stride", "offset")]
)


def work(job_address: int) -> None:
    """One thread's part: take chunks until none is left, and move what each holds."""
    job = carray(_pointer(job_address), 1, JOB)[0]
    rows = carray(_pointer(job.rows), job.tensors, ROW)
    i, decided, keep = 0, -1, False
    while True:
        i, start, stop = _next(job_address, job, rows, i)
        if start < 0:
            return
        row = rows[i]
        whole = row.whole or job.threshold == 0
        if whole:
            if decided != i:
                decided = i
                keep = row.drawn != 0 and _draw(0, row.key0, row.key1, job.step) < job.threshold
            if not keep:
                _move(row, job, start, stop, STEP)
        while start < stop and not whole:  # stretches that are contiguous in the global tensor
            within = start % row.row
            end = min(start + row.row - within, stop)
            element = start // row.row * row.stride + row.offset + within
            if row.unit_size == 1:
                _move_elements(row, job, start, end, element)
            else:
                _move_units(row, job, start, end, element)
            start = end


def search(job_address: int) -> None:
    """One thread's part: take chunks until none is left, and mark the rows whose student holds an inf or NaN."""
    job = carray(_pointer(job_address), 1, JOB)[0]
    rows = carray(_pointer(job.rows), job.tensors, ROW)
    i = 0
    while True:
        i, start, stop = _next(job_address, job, rows, i)
        if start < 0:
            return
        if _holds_nonfinite(rows[i], start, stop):
            rows[i].nonfinite = 1


@numba.njit(error_model="numpy")
def _next(job_address: int, job: Any, rows: Any, i: int) -> tuple[int, int, int]:
    """(row, start, stop) of the next chunk, in row i or a later one; a start of -1 if none is left."""
    chunk = _take(job_address)
    if chunk >= job.chunks:
        return i, -1, -1
    while i + 1 < job.tensors and chunk >= rows[i + 1].first_chunk:
        i += 1
    start = (chunk - rows[i].first_chunk) * CHUNK
    return i, start, min(start + CHUNK, rows[i].numel)


@numba.njit(error_model="numpy")
def _holds_nonfinite(row: Any, start: int, stop: int) -> Any:
    """Whether all bits of an exponent are set."""
    if row.dtype == FLOAT32:
        words = carray(_pointer(row.student + 4 * start), stop - start, uint32)
        largest = uint32(0)
        for i in range(stop - start):
            largest = max(largest, words[i] & uint32(0x7F800000))
        return largest == uint32(0x7F800000)
    halves = carray(_pointer(row.student + 2 * start), stop - start, uint16)
    exponent = uint16(0x7F80) if row.dtype == BFLOAT16 else uint16(0x7C00)
    most = uint16(0)
    for i in range(stop - start):
        most = max(most, halves[i] & exponent)
    return most == exponent


@numba.njit(error_model="numpy")
def _move_units(row: Any, job: Any, start: int, stop: int, element: int) -> None:
    """Move the units of a stretch that are not preserved. `element` is the global index of start."""
    draws = carray(_buffer(), PIECE, uint16)
    begins, ends = carray(_buffer(), PIECE, uint32), carray(_buffer(), PIECE, uint32)  # of runs to move, from start
    unit = element // row.unit_size
    last = (element + stop - start - 1) // row.unit_size
    while unit <= last:
        bound = min((unit // PIECE + 1) * PIECE, last + 1)
        _fill(draws, unit, bound, row.key0, row.key1, job.step)
        end = max(unit * row.unit_size - element, 0)
        runs, kept = 0, True
        for u in range(unit, bound):
            begin, end = end, min((u + 1) * row.unit_size - element, stop - start)
            if draws[u % PIECE] < job.threshold:
                kept = True
                continue
            if kept:
                begins[runs] = begin
                runs += 1
            ends[runs - 1] = end
            kept = False
        for k in range(runs):
            if k + 1 < runs:  # no processor guesses a leap over preserved channels
                begin, end = int64(begins[k + 1]), int64(ends[k + 1])
                _fetch(row, start + begin, start + min(begin + UNIT_STEP, end))
            _move(row, job, start + int64(begins[k]), start + int64(ends[k]), UNIT_STEP)
        unit = bound


@numba.njit(error_model="numpy")
def _move_elements(row: Any, job: Any, start: int, stop: int, element: int) -> None:
    """Move the elements of a stretch that are not preserved; `element` is start's global index."""
    draws = carray(_buffer(), PIECE, uint16)
    wide = _buffer()
    zero = uint32(job.zero)  # as LLVM cannot know, or it would make masked stores, which take AMD's Zen 4 twice as long
    threshold, formula, factor = uint32(job.threshold), job.formula, job.factor
    while start < stop:
        first = element % PIECE
        n = min(PIECE - first, stop - start)
        _fill(draws, element, element + n, row.key0, row.key1, job.step)
        t = carray(_pointer(row.teacher + 4 * start), n, uint32)
        s = carray(_student(row, start, n, wide), n, float32)
        for i in range(n):
            old, new = t[i] ^ zero, _bits(_mixed(_float(t[i]), s[i], formula, factor))
            t[i] = old if uint32(draws[first + i]) < threshold else new
        start += n
        element += n


@numba.njit(error_model="numpy")
def _move(row: Any, job: Any, start: int, stop: int, step: int) -> None:
    """Move all elements of a stretch, so many at a step."""
    wide = _buffer()
    formula, factor = job.formula, job.factor  # what a loop reads from memory could change, so it would not vectorise
    while start < stop:
        n = min(step, stop - start)
        _fetch(row, start + step, start + step + n)
        t = carray(_pointer(row.teacher + 4 * start), n, float32)
        s = carray(_student(row, start, n, wide), n, float32)
        for i in range(n):
            t[i] = _mixed(t[i], s[i], formula, factor)
        start += n


@numba.njit(error_model="numpy")
def _fetch(row: Any, start: int, stop: int) -> None:
    """Have elements fetched into the second-level cache that will soon be moved."""
    size = 4 if row.dtype == FLOAT32 else 2
    for i in range(start, stop, 16):
        _hint(row.teacher + 4 * i)
        _hint(row.student + size * i)


@numba.njit(error_model="numpy")
def _mixed(t: Any, s: Any, formula: int, factor: Any) -> Any:
    """As in ATen/native/Lerp.h: weight below one half, t + weight (s - t); otherwise s + (weight - 1) (s - t)."""
    if formula == COPY:
        return s
    return _fma(factor, s - t, t if formula == SMALL else s)


@numba.njit(error_model="numpy")
def _student(row: Any, start: int, n: int, wide: Any) -> Any:
    """The address of n of the student's elements as float32: where they are, or widened into the buffer `wide`."""
    if row.dtype == FLOAT32:
        return _pointer(row.student + 4 * start)
    halves = carray(_pointer(row.student + 2 * start), n, uint16)
    out = carray(wide, n, uint32)
    if row.dtype == BFLOAT16:
        for i in range(n):
            out[i] = uint32(halves[i]) << uint32(16)
    else:
        for i in range(n):
            half = uint32(halves[i])
            magnitude = ((half & uint32(0x7FFF)) << uint32(13)) + uint32(112 << 23)  # the exponent rebiased
            if half & uint32(0x7C00) == uint32(0x7C00):  # inf and NaN
                magnitude |= uint32(0x7F800000)
            elif half & uint32(0x7C00) == uint32(0):  # subnormal here, normal in float32
                magnitude = _bits(float32(half & uint32(0x3FF)) * float32(2.0**-24))
            out[i] = magnitude | (half & uint32(0x8000)) << uint32(16)
    return wide


@numba.njit(error_model="numpy")
def _fill(draws: Any, start: int, stop: int, key0: int, key1: int, step: int) -> None:
    """draws[i % 512] = draw i, for all i of start ... stop - 1, which lie within 512 that share their 64 counters."""
    if stop - start < FEW:
        for i in range(start, stop):
            draws[i % PIECE] = _draw(i, key0, key1, step)
        return
    block = uint64(start // PIECE * 64)
    for lane in range(64):
        c0, c1, c2, c3 = _philox(block + uint64(lane), key0, key1, uint64(step))
        draws[lane], draws[64 + lane] = uint16(c0), uint16(c0 >> uint64(16))
        draws[128 + lane], draws[192 + lane] = uint16(c1), uint16(c1 >> uint64(16))
        draws[256 + lane], draws[320 + lane] = uint16(c2), uint16(c2 >> uint64(16))
        draws[384 + lane], draws[448 + lane] = uint16(c3), uint16(c3 >> uint64(16))


@numba.njit(error_model="numpy")
def _draw(index: int, key0: int, key1: int, step: int) -> Any:
    part = index % 512 // 64
    words = _philox(uint64(index // 512 * 64 + index % 64), key0, key1, uint64(step))
    word = words[0] if part < 2 else words[1] if part < 4 else words[2] if part < 6 else words[3]
    return uint16(word >> uint64(16 * (part % 2)))


@numba.njit(error_model="numpy")
def _philox(block: Any, key0: Any, key1: Any, step: Any) -> Any:
    """Philox4x32-7 as in draw.py, each word in the low half of 64 bits, so that vector units multiply it as it is."""
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
def _buffer(typing: Any) -> Any:
    """2 KiB on the stack: 512 elements of up to four bytes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        space = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(32), PIECE))
        space.align = 64
        return builder.bitcast(space, cgutils.voidptr_t)

    return types.voidptr(), generate


@intrinsic
def _take(typing: Any, address: Any) -> Any:
    """The int64 at an address, which goes up by one: no two threads get the same."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.IntType(64)(1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def _hint(typing: Any, address: Any) -> Any:
    """Ask for the cache line of an address, into the second level: it has more requests open than the first."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", (cgutils.voidptr_t,), kind)
        builder.call(prefetch, [builder.inttoptr(args[0], cgutils.voidptr_t), word(0), word(2), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once."""
    return types.float32(
        types.float32, types.float32, types.float32
    ), lambda context, builder, signature, args: builder.fma(*args)


@intrinsic
def _float(typing: Any, bits: Any) -> Any:
    return types.float32(types.uint32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.FloatType()
    )


@intrinsic
def _bits(typing: Any, value: Any) -> Any:
    return types.uint32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )
