"""The rule on the CPU: one parallel pass over a table of float32 tensors, in loops that numba compiles (cpu_loops.py).

Each thread takes chunks of the table until none is left. The threads are torch's own (its OpenMP team), so nothing is
oversubscribed, `torch.set_num_threads` is followed, and a fork is as safe as it is for torch. The arithmetic is that of
`torch.lerp` to the bit, which `works` makes sure of on the machine at hand.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from spatial_ensemble.smoothing.draw import Place
from spatial_ensemble.smoothing.kernels.cpu_loops import (
    BFLOAT16,
    CHUNK,
    COPY,
    FLOAT16,
    FLOAT32,
    LARGE,
    ROW,
    SMALL,
    Job,
    search,
    work,
)
from spatial_ensemble.smoothing.kernels.layout import is_flat

STUDENTS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


class Table:
    """The rule over pairs of tensors that this kernel takes, for as long as they lie where they lay."""

    def __init__(self, triples: Sequence[tuple[Tensor, Tensor, Place]]):
        self._teacher = [t for t, _, _ in triples]
        self._tensors = [*self._teacher, *(s for _, s, _ in triples)]
        self._strided = [tensor for tensor in self._tensors if tensor.ndim > 1]
        self._layout = self._read_layout()
        self._storages = [t.untyped_storage() for t in self._tensors]  # so that no address is used a second time
        self._students = [s for _, s, _ in triples if s.numel()]
        rows: list[tuple[int, ...]] = []
        chunks = 0
        for t, s, place in triples:
            if t.numel():
                draws = (place.key is not None, place.whole, *(place.key or (0, 0)), place.unit_size, *place[3:])
                rows.append((t.data_ptr(), s.data_ptr(), STUDENTS[s.dtype], t.numel(), chunks, 0, *draws))
                chunks += -(-t.numel() // CHUNK)
        self._rows = np.array(rows, ROW)
        self._job = Job(chunks=chunks, rows=self._rows.ctypes.data, tensors=len(rows))

    def holds(self) -> bool:
        """Whether no tensor was given other memory, as by `parameter.data = ...`."""
        return self._read_layout() == self._layout

    def run(self, step: int, threshold: int, weight: float) -> None:
        torch.autograd.graph.increment_version(self._teacher)  # first, while `holds` has them in the caches
        job = self._job
        job.next, job.step, job.threshold = 0, step, threshold
        job.formula, job.factor = _formula(weight)
        _in_parallel(work, job)

    def nonfinite(self) -> list[Tensor]:
        """The student's tensors that hold an inf or NaN."""
        self._job.next = 0
        self._rows["nonfinite"] = 0
        _in_parallel(search, self._job)
        return [self._students[i] for i in self._rows["nonfinite"].nonzero()[0]]

    def _read_layout(self) -> list[object]:
        return [
            *map(Tensor.data_ptr, self._tensors),
            *map(Tensor.numel, self._tensors),
            *map(Tensor.stride, self._strided),
        ]


def takes(t: Tensor, s: Tensor, place: Place) -> bool:
    """Whether this kernel smooths `s` into `t`: flat memory, into float32."""
    return (
        t.device.type == s.device.type == "cpu"
        and t.dtype == torch.float32
        and s.dtype in STUDENTS
        and is_flat(t, s, place)
    )


@cache
def works() -> bool:
    """Whether the compiled loops round as torch does on this machine: both then use fused multiply-add."""
    generator = torch.Generator("cpu").manual_seed(0)
    t, s = torch.randn(2, 77, generator=generator, dtype=torch.float32, device="cpu")
    moved = [t.clone() for _ in range(3)]
    for result, weight in zip(moved, (0.1, 0.5, 0.9), strict=True):
        Table([(result, s, Place(None, 1, 77, 77, 77, 0))]).run(0, 0, weight)
    return all(result.equal(t.lerp(s, weight)) for result, weight in zip(moved, (0.1, 0.5, 0.9), strict=True))


def _formula(weight: float) -> tuple[int, float]:
    """(which formula, its factor), rounded to float32 as torch.lerp does on the CPU."""
    rounded = np.float32(weight)
    if weight == 1:
        return COPY, 0.0
    return (SMALL, float(rounded)) if rounded < 0.5 else (LARGE, float(rounded - np.float32(1)))


def _in_parallel(part: Callable[[int], None], job: Job) -> None:
    """Let each thread do its part of a job, on torch's own OpenMP team; where torch has none, on threads of its own."""
    compiled, address, threads = _compiled(part), ctypes.addressof(job), min(torch.get_num_threads(), job.chunks)
    if (parallel := _openmp()) is not None:
        parallel(compiled.address, address, threads, 0)
        return
    others = [threading.Thread(target=compiled.ctypes, args=(address,)) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    compiled.ctypes(address)
    for thread in others:
        thread.join()


@cache
def _openmp() -> Callable[..., None] | None:
    """`GOMP_parallel(function, data, threads, flags)` of the OpenMP library that torch itself is linked with."""
    parallel = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if parallel is not None:
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
    return parallel


@cache
def _compiled(part: Callable[[int], None]) -> Any:
    """`work` or `search` as machine code, kept on disk if numba finds a place for it."""
    try:
        return numba.cfunc(types.void(types.intp), cache=True, error_model="numpy")(part)
    except RuntimeError:  # no writable directory
        return numba.cfunc(types.void(types.intp), error_model="numpy")(part)
