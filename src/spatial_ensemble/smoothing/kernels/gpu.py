# mypy: disallow-untyped-decorators=False
"""The rule on a GPU, in Triton: a few launches for all tensors, masks drawn inside. Not yet measured on a GPU.

Tests compare it with the reference through Triton's interpreter on a CPU. One program handles a chunk of one tensor,
found in a table of pointers on the device; for a preserved tensor, channel or element it neither loads nor stores.
There is no host synchronisation.

CUDA graphs: the step is counted on the device, so an update can be captured after one update outside of the graph,
which builds the table. Each replay continues at the step after the last update or replay. Host values are frozen in the
graph: schedules keep their value at the capture, and replays do not change `teacher.step`, which the capture itself
raises by one: add the number of replays less one before saving, or before calling `update` outside of the graph again.
After loading a state capture again: a graph keeps the tensors, seed and step of its capture.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spatial_ensemble.smoothing.kernels.flat import is_flat
from spatial_ensemble.smoothing.kernels.plain import PlainKernel, capturing, nonfinite
from spatial_ensemble.smoothing.kernels.protocol import Kernel, Triple
from spatial_ensemble.smoothing.units import MaskLayout

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
CHUNK = 4096  # elements per program: eight spans of 512 draws
# How a program maps elements to draws: one for the tensor; one an element, in spans of 512 draws; one a unit; or one
# for the tensor, but in spans, since each element is rounded by a draw of its own.
WHOLE, ELEMENTS, UNITS, SPANS = range(4)
SMALL, LARGE, COPY = range(3)  # torch.lerp's formulas for weights below and above one half; weight 1

_CHUNK, _WHOLE, _UNITS, _SPANS = (tl.constexpr(value) for value in (CHUNK, WHOLE, UNITS, SPANS))
_SMALL, _COPY = tl.constexpr(SMALL), tl.constexpr(COPY)

_captured: "list[GpuKernel]" = []  # kept for the life of the process: graphs read the memory they hold


class Kind(NamedTuple):
    """What all tensors of one launch share."""

    device: torch.device
    teacher: torch.dtype
    student: torch.dtype
    draws: int  # WHOLE, ELEMENTS, UNITS or SPANS
    group: int  # neighbouring elements that share a draw
    wide: bool  # whether addresses and sizes are multiples of 16, for vector loads
    rounds: bool  # stochastically


class GpuKernel(Kernel):
    """Takes flat tensors of one GPU."""

    def __init__(self, triples: Sequence[Triple]):
        self._teacher, self._students = [t for t, _, _ in triples], [s for _, s, _ in triples]
        self._storages = [tensor.untyped_storage() for tensor in self._teacher + self._students]  # keep addresses valid
        alike: dict[Kind, list[Triple]] = {}
        for triple in triples:
            if triple[0].numel():
                alike.setdefault(_kind(*triple), []).append(triple)
        self._launches = [(kind, *_rows(kind, members)) for kind, members in alike.items()]
        with torch.inference_mode(False):  # inference tensors cannot be written to outside of inference mode
            self._clocks = {kind.device: torch.zeros(1, dtype=torch.int64, device=kind.device) for kind in alike}

    @staticmethod
    def takes(t: Tensor, s: Tensor, layout: MaskLayout) -> bool:
        return (
            t.device.type == "cuda"
            and t.device == s.device
            and t.dtype in DTYPES
            and s.dtype in DTYPES
            and is_flat(t, s, layout)
        )

    def nonfinite(self) -> list[Tensor]:
        return nonfinite(self._students)

    def run(self, step: int, threshold: int, weight: float) -> None:
        rounded = torch.tensor(weight, dtype=torch.float32, device="cpu").item()
        formula = COPY if weight == 1 else SMALL if rounded < 0.5 else LARGE
        if capturing():
            _captured.append(self)
        else:
            for clock in self._clocks.values():
                clock.fill_(step)
        for kind, rows, chunks in self._launches:
            # At a threshold of 0 nothing is preserved: no draws are needed.
            drawless = threshold == 0 and kind.draws == UNITS and not kind.rounds
            draws, group = (WHOLE, 1) if drawless else (kind.draws, kind.group)
            tensors = rows.shape[1]
            with torch.cuda.device(kind.device) if kind.device.type == "cuda" else contextlib.nullcontext():
                _smooth[(chunks,)](
                    rows,
                    self._clocks[kind.device],
                    tensors,
                    threshold,
                    rounded if formula == SMALL else rounded - 1,
                    FORMULA=formula,
                    DRAWS=draws,
                    GROUP=group,
                    TEACHER=DTYPES[kind.teacher],
                    STUDENT=DTYPES[kind.student],
                    BITS=max(tensors - 1, 1).bit_length(),
                    WIDE=kind.wide,
                    ROUND=kind.rounds and formula != COPY,
                    enable_fp_fusion=False,  # `_move` fuses explicitly
                )
        for clock in self._clocks.values():
            clock.add_(1)
        torch.autograd.graph.increment_version(self._teacher)


def works() -> bool:
    """Whether masks equal plain torch's, and values agree to rounding, on this GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    t, s = torch.randn(2, 96, 16, device="cuda", dtype=torch.float32, generator=generator)
    for unit_size in (1, 16, 1536):
        layout = MaskLayout((1, 2), unit_size, 1536 // unit_size, 1536, 1536, 0)
        moved, expected = t.clone(), t.clone()
        GpuKernel([(moved, s, layout)]).run(3, 1 << 15, 0.25)
        PlainKernel([(expected, s, layout)]).run(3, 1 << 15, 0.25)
        if not (torch.equal(moved == t, expected == t) and torch.allclose(moved, expected, rtol=1e-6, atol=1e-6)):
            return False
    return True


def _kind(t: Tensor, s: Tensor, layout: MaskLayout) -> Kind:
    wide = all(number % 16 == 0 for number in (t.data_ptr(), s.data_ptr(), t.numel()))
    rounds, flat = layout.rounding is not None, layout.row == t.numel()
    if layout.whole and (flat or not rounds):
        return Kind(t.device, t.dtype, s.dtype, SPANS if rounds else WHOLE, 1, wide and not rounds, rounds)
    if layout.unit_size == 1 and flat:
        return Kind(t.device, t.dtype, s.dtype, ELEMENTS, 1, False, rounds)
    together = all(number % 8 == 0 for number in (layout.unit_size, layout.row, layout.stride, layout.offset))
    return Kind(t.device, t.dtype, s.dtype, UNITS, 8 if together else 1, wide and together, rounds)


def _rows(kind: Kind, triples: Sequence[Triple]) -> tuple[Tensor, int]:
    """(int64 [fields, tensors] on the device, number of chunks)."""
    rows, chunks = [], 0
    for t, s, layout in triples:
        key, rounding = layout.key or (0, 0), layout.rounding or (0, 0)
        fields = (t.data_ptr(), s.data_ptr(), t.numel(), chunks, layout.key is not None, *key, layout.unit_size)
        rows.append([*map(int, fields), layout.row, layout.stride, layout.offset, *rounding])
        skipped = layout.offset % 512 if kind.draws in (ELEMENTS, SPANS) else 0  # align chunks with spans of 512 draws
        chunks += -(-(skipped + t.numel()) // CHUNK)
    return torch.tensor(rows, dtype=torch.int64, device="cpu").t().contiguous().to(kind.device), chunks


@triton.jit
def _philox(block, key0, key1, step):  # type: ignore[no-untyped-def]
    """Philox4x32-7, as in draw.py."""
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    c2, c3 = step.to(tl.uint32) + tl.zeros_like(c0), (step >> 32).to(tl.uint32) + tl.zeros_like(c0)
    for _ in tl.static_range(7):
        b0, b2 = c0, c2
        c0 = tl.umulhi(b2, tl.full(b2.shape, 0xCD9E8D57, tl.uint32)) ^ c1 ^ key0
        c2 = tl.umulhi(b0, tl.full(b0.shape, 0xD2511F53, tl.uint32)) ^ c3 ^ key1
        c1 = b2 * tl.full(b2.shape, 0xCD9E8D57, tl.uint32)
        c3 = b0 * tl.full(b0.shape, 0xD2511F53, tl.uint32)
        key0 += tl.full(key0.shape, 0x9E3779B9, tl.uint32)
        key1 += tl.full(key1.shape, 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _draws(index, key0, key1, step):  # type: ignore[no-untyped-def]
    """The draws of any indices, one counter each."""
    c0, c1, c2, c3 = _philox(index // 512 * 64 + index % 64, key0, key1, step)
    part = (index % 512 // 64).to(tl.int32)
    word = tl.where(part < 4, tl.where(part < 2, c0, c1), tl.where(part < 6, c2, c3))
    return tl.where(part % 2 == 0, word & 0xFFFF, word >> 16).to(tl.int32)


@triton.jit
def _move(teacher, student, j, moves, factor, noise, FORMULA: tl.constexpr, ROUND: tl.constexpr):  # type: ignore[no-untyped-def]
    """T <- T + weight * (S - T) at the elements j that move."""
    s = tl.load(student + j, mask=moves).to(tl.float32)
    if ROUND:
        s = s.to(teacher.dtype.element_ty).to(tl.float32)
    if FORMULA == _COPY:
        moved = s
    else:
        t = tl.load(teacher + j, mask=moves).to(tl.float32)
        moved = tl.fma(s - t, tl.zeros_like(t) + factor, t if FORMULA == _SMALL else s)
    if ROUND:
        moved = _round(moved, noise, teacher.dtype.element_ty == tl.bfloat16)
    tl.store(teacher + j, moved.to(teacher.dtype.element_ty), mask=moves)


@triton.jit
def _round(x, noise, BFLOAT16: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stochastic rounding to bfloat16 or float16 by draws of 16 bits, as in rounding.py."""
    DROPPED: tl.constexpr = 16 if BFLOAT16 else 13
    base = tl.where(tl.abs(x) < (0.0 if BFLOAT16 else 2.0**-14), 2.0**-14, 0.0)
    bits = (tl.abs(x) + base).to(tl.int32, bitcast=True) + (noise >> 16 - DROPPED)
    size = (bits >> DROPPED << DROPPED).to(tl.float32, bitcast=True) - base
    sign = x.to(tl.int32, bitcast=True) & -0x80000000
    return tl.where(x == x, (size.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True), x)


@triton.jit(do_not_specialize=["tensors", "threshold", "factor"])
def _smooth(  # type: ignore[no-untyped-def]
    rows,
    clock,
    tensors,
    threshold,
    factor,
    FORMULA: tl.constexpr,
    DRAWS: tl.constexpr,
    GROUP: tl.constexpr,
    TEACHER: tl.constexpr,
    STUDENT: tl.constexpr,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    ROUND: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    i = chunk * 0  # the last tensor whose first chunk is not beyond this one, by binary search
    for bit in tl.static_range(BITS):
        further = i + (1 << (BITS - 1 - bit))
        first = tl.load(rows + 3 * tensors + further, mask=further < tensors, other=1 << 62)
        i = tl.where(first <= chunk, further, i)
    rows += i
    teacher = tl.load(rows).to(tl.pointer_type(TEACHER))
    student = tl.load(rows + tensors).to(tl.pointer_type(STUDENT))
    numel = tl.load(rows + 2 * tensors)
    if WIDE:
        teacher, student, numel = tl.multiple_of(teacher, 16), tl.multiple_of(student, 16), tl.multiple_of(numel, 16)
    start = (chunk - tl.load(rows + 3 * tensors)) * _CHUNK
    threshold = tl.where(tl.load(rows + 4 * tensors) == 0, 0, threshold)  # under no mask
    key0, key1 = tl.load(rows + 5 * tensors).to(tl.uint32), tl.load(rows + 6 * tensors).to(tl.uint32)
    unit_size, row, stride = tl.load(rows + 7 * tensors), tl.load(rows + 8 * tensors), tl.load(rows + 9 * tensors)
    offset = tl.load(rows + 10 * tensors)
    round0, round1 = tl.load(rows + 11 * tensors).to(tl.uint32), tl.load(rows + 12 * tensors).to(tl.uint32)
    step = tl.load(clock)
    if DRAWS == _WHOLE:
        moves = _draws(chunk * 0, key0, key1, step) >= threshold
        j = start + tl.arange(0, _CHUNK)
        _move(teacher, student, j, j < tl.where(moves, numel, 0), factor, 0, FORMULA, False)
    elif DRAWS == _UNITS:
        head = start + tl.arange(0, _CHUNK // GROUP) * GROUP
        unit = (head // row * stride + offset + head % row) // unit_size
        moves = _draws(unit, key0, key1, step) >= threshold
        j = head[:, None] + tl.arange(0, GROUP)[None, :]
        noise = _draws(j // row * stride + offset + j % row, round0, round1, step) if ROUND else 0
        _move(teacher, student, j, (j < numel) & moves[:, None], factor, noise, FORMULA, ROUND)
    else:
        lane = tl.arange(0, _CHUNK // 8)
        element = offset // 512 * 512 + start  # the first of the chunk, in the global tensor
        block = element // 512 * 64 + lane
        if DRAWS == _SPANS:
            numel = tl.where(_draws(chunk * 0, key0, key1, step) >= threshold, numel, 0)
        else:
            c0, c1, c2, c3 = _philox(block, key0, key1, step)
        if ROUND:
            n0, n1, n2, n3 = _philox(block, round0, round1, step)
        for part in tl.static_range(8):  # of each 512 draws the 64 that lie side by side
            j = element - offset + lane // 64 * 512 + part * 64 + lane % 64
            moves = (j >= 0) & (j < numel)
            noise = 0
            if DRAWS != _SPANS:
                word = c0 if part < 2 else c1 if part < 4 else c2 if part < 6 else c3
                moves &= (word >> (16 * (part % 2)) & 0xFFFF).to(tl.int32) >= threshold
            if ROUND:
                word = n0 if part < 2 else n1 if part < 4 else n2 if part < 6 else n3
                noise = (word >> (16 * (part % 2)) & 0xFFFF).to(tl.int32)
            _move(teacher, student, j, moves, factor, noise, FORMULA, ROUND)
