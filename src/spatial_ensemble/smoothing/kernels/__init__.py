"""Kernels for the rule, chosen by device, dtype and memory layout, never by the user."""

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from functools import cache

from spatial_ensemble.smoothing.kernels.plain import PlainKernel
from spatial_ensemble.smoothing.kernels.protocol import Kernel, Triple


def choose(triples: Sequence[Triple]) -> list[Kernel]:
    """Kernels that together update all triples; plain torch takes what no compiled kernel does."""
    devices = {t.device.type for t, _, _ in triples}
    left, chosen = list(triples), list[Kernel]()
    for kernel in (_cpu() if "cpu" in devices else None, _gpu() if "cuda" in devices else None, PlainKernel):
        if kernel is not None and (taken := [triple for triple in left if kernel.takes(*triple)]):
            left = [triple for triple in left if not kernel.takes(*triple)]
            chosen.append(kernel(taken))
    return chosen


def _cpu() -> type[Kernel] | None:
    return _load("cpu", "CpuKernel", "numba")


def _gpu() -> type[Kernel] | None:
    return _load("gpu", "GpuKernel", "triton")


@cache
def _load(module: str, name: str, package: str) -> type[Kernel] | None:
    """A compiled kernel, if its package is installed and its self-test passes."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        loaded = importlib.import_module(f"{__name__}.{module}")
        if not loaded.works():
            raise RuntimeError("its values differ from torch's on this machine")
        kernel: type[Kernel] = getattr(loaded, name)
        return kernel
    except Exception as error:  # an update must not fail for want of speed
        warnings.warn(f"{package} cannot run the {module} kernel, updates run in plain torch: {error}", stacklevel=2)
        return None
