"""One signature, several ways to run it: the kernel is chosen by device, dtype and layout, never by the user."""

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType

from torch import Tensor

from spatial_ensemble.smoothing.draw import Keep, Place
from spatial_ensemble.smoothing.kernels import plain


class Smoother:
    """The rule over the same pairs of tensors, step after step; which kernel takes which pair is worked out once.

        T <- K * T + (1 - K) * (T + weight * (S - T)),    weight = 1 - m

    Args:
        triples: local tensors of the teacher, changed in place, of any shapes, strides, dtypes and devices; the
            student's, of the same shapes; and where each pair's draws lie.
    """

    def __init__(self, triples: Sequence[tuple[Tensor, Tensor, Place]]):
        self._tables = _tables(list(triples))

    def holds(self) -> bool:
        """Whether the tensors still lie in memory where they lay, so that `run` means them."""
        return all(table.holds() for table in self._tables)

    def run(self, step: int, threshold: int, weight: float) -> None:
        """One update. `threshold` is that of `draw.Keep`; a weight of 1 copies, 0 leaves all as it is."""
        if weight == 0:
            return
        for table in self._tables:
            table.run(step, threshold, weight)

    def nonfinite(self) -> list[Tensor]:
        """The student's tensors that hold an inf or NaN; waits for a GPU."""
        return [tensor for table in self._tables for tensor in table.nonfinite()]


def smooth_(teacher: Sequence[Tensor], student: Sequence[Tensor], keep: Keep, weight: float) -> None:
    """Apply the rule once; see `Smoother`."""
    Smoother(list(zip(teacher, student, keep.places, strict=True))).run(keep.step, keep.threshold, weight)


def _tables(triples: list[tuple[Tensor, Tensor, Place]]) -> list[plain.Table]:
    """A table for each kernel that takes any of the pairs; plain torch takes what is left."""
    tables: list[plain.Table] = []
    devices = {t.device.type for t, _, _ in triples}
    if "cuda" in devices and plain.capturing():
        raise RuntimeError(
            "the first update on these tensors cannot be captured in a CUDA graph; call update once before"
        )
    for kernel in (_cpu() if "cpu" in devices else None, _gpu() if "cuda" in devices else None):
        if kernel is not None:
            taken = [triple for triple in triples if kernel.takes(*triple)]
            triples = [triple for triple in triples if not kernel.takes(*triple)]
            tables += [kernel.Table(taken)] if taken else []
    return [*tables, plain.Table(triples)] if triples else tables


def _cpu() -> ModuleType | None:
    return _kernel("cpu", "numba")


def _gpu() -> ModuleType | None:
    return _kernel("gpu", "triton")


@cache
def _kernel(name: str, package: str) -> ModuleType | None:
    """A kernel that its package can compile and that proves itself on this machine; a check made once."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        kernel = importlib.import_module(f"spatial_ensemble.smoothing.kernels.{name}")
        if not kernel.works():
            raise RuntimeError("its values are not those of torch on this machine")
        return kernel
    except Exception as error:  # an update must not fail for want of speed
        warnings.warn(f"{package} cannot run the {name} kernel, updates run in plain torch: {error}", stacklevel=2)
        return None
