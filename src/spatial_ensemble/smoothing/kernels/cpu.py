"""The rule on the CPU: one parallel pass over a table of tensors, in loops compiled by numba (cpu_loops.py).

Each thread takes chunks of the table until none is left. The threads are torch's own OpenMP team, not numba's: `prange`
would add a second pool beside it, ignore `torch.set_num_threads`, and abort in a forked worker. The arithmetic is that
of `torch.lerp` to the bit, which `works` checks on this machine.
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

from spatial_ensemble.smoothing.kernels import cpu_loops as loops
from spatial_ensemble.smoothing.kernels.flat import is_flat
from spatial_ensemble.smoothing.kernels.protocol import Kernel, Triple
from spatial_ensemble.smoothing.units import MaskLayout

DTYPES = {torch.float32: loops.FLOAT32, torch.bfloat16: loops.BFLOAT16, torch.float16: loops.FLOAT16}


class CpuKernel(Kernel):
    """Takes flat tensors: float32 teachers of float32, bfloat16 or float16 students, and half-precision teachers of
    students in the same dtype that are rounded stochastically.
    """

    def __init__(self, triples: Sequence[Triple]):
        self._teacher = [t for t, _, _ in triples]
        self._storages = [x.untyped_storage() for t, s, _ in triples for x in (t, s)]  # keep addresses valid
        filled = [triple for triple in triples if triple[0].numel()]
        self._students = [s for _, s, _ in filled]
        rows: list[tuple[int, ...]] = []
        chunks = 0
        for t, s, layout in filled:
            keys = *(layout.key or (0, 0)), *(layout.rounding or (0, 0))
            draws = layout.key is not None, layout.whole, *keys, layout.unit_size, layout.row, layout.stride
            dtypes = t.dtype != torch.float32, DTYPES[s.dtype]
            rows.append((t.data_ptr(), s.data_ptr(), *dtypes, t.numel(), chunks, 0, *draws, layout.offset))
            chunks += -(-t.numel() // loops.CHUNK)
        self._rows = np.array(rows, loops.ROW)
        self._job = loops.Job(chunks=chunks, rows=self._rows.ctypes.data, tensors=len(rows))

    @staticmethod
    def takes(t: Tensor, s: Tensor, layout: MaskLayout) -> bool:
        on_cpu = t.device.type == s.device.type == "cpu"
        float32 = t.dtype == torch.float32 and s.dtype in DTYPES
        half = layout.rounding is not None and t.dtype == s.dtype
        return on_cpu and (float32 or half) and is_flat(t, s, layout)

    def run(self, step: int, threshold: int, weight: float) -> None:
        torch.autograd.graph.increment_version(self._teacher)
        self._job.step, self._job.threshold = step, threshold
        rounded = np.float32(weight)  # as torch.lerp does on the CPU
        if weight == 1:
            self._pass(loops.COPY)
        elif rounded < 0.5:
            self._pass(loops.SMALL, float(rounded))
        else:
            self._pass(loops.LARGE, float(rounded - np.float32(1)))

    def nonfinite(self) -> list[Tensor]:
        self._rows["nonfinite"] = 0
        self._pass(loops.SEARCH)
        return [self._students[i] for i in self._rows["nonfinite"].nonzero()[0]]

    def _pass(self, formula: int, factor: float = 0.0) -> None:
        """One parallel pass over the table."""
        job = self._job
        job.next, job.formula, job.factor = 0, formula, factor
        work, address, threads = _compiled(), ctypes.addressof(job), min(torch.get_num_threads(), job.chunks)
        if (parallel := _openmp()) is not None:
            parallel(work.address, address, threads, 0)
            return
        others = [threading.Thread(target=work.ctypes, args=(address,)) for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        work.ctypes(address)
        for thread in others:
            thread.join()


def works() -> bool:
    """Whether the compiled loops round as torch does on this machine, with fused multiply-add in both."""
    generator = torch.Generator("cpu").manual_seed(0)
    t, s = torch.randn(2, 77, generator=generator, dtype=torch.float32, device="cpu")
    for weight in (0.1, 0.5, 0.9):
        moved = t.clone()
        CpuKernel([(moved, s, MaskLayout(None, 1, 77, 77, 77, 0))]).run(0, 0, weight)
        if not moved.equal(t.lerp(s, weight)):
            return False
    return True


@cache
def _openmp() -> Callable[..., None] | None:
    """`GOMP_parallel(function, data, threads, flags)` of the OpenMP library torch is linked with, if any."""
    parallel = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if parallel is not None:
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
    return parallel


@cache
def _compiled() -> Any:
    """`work` as machine code, cached on disk if numba finds a writable directory."""
    compiled = numba.cfunc(types.void(types.intp), error_model="numpy", fastmath={"contract"}, cache=True)
    try:
        return compiled(loops.work)
    except RuntimeError:  # no writable directory
        return numba.cfunc(types.void(types.intp), error_model="numpy", fastmath={"contract"})(loops.work)
