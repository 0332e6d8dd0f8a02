"""What an update does: a cached plan, rebuilt when the modules or the teacher's settings change."""

import itertools
import weakref
from collections.abc import Iterator
from functools import partial
from operator import attrgetter, is_
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing import kernels
from spatial_ensemble.smoothing.draw import threshold
from spatial_ensemble.smoothing.kernels.plain import capturing, nonfinite
from spatial_ensemble.smoothing.kernels.protocol import Triple
from spatial_ensemble.smoothing.pairing import Pair, pair_tensors
from spatial_ensemble.smoothing.rounding import HALF, Rounding
from spatial_ensemble.smoothing.shards import is_sharded, least, local
from spatial_ensemble.smoothing.units import Group, MaskLayout, Unit, mask_layout, rounded, unmasked

Buffers = Literal["average", "copy", "follow", "keep"]


class Settings(NamedTuple):
    """The teacher's settings that a plan depends on."""

    seed: int
    unit: Unit
    group: Group | None
    buffers: Buffers
    own_buffer_momentum: bool
    rounding: Rounding = "nearest"
    shared: frozenset[str] = frozenset()

    def layout(self, pair: Pair) -> MaskLayout | None:
        """The mask layout of a pair, or None if it is copied."""
        if not pair.is_inexact:
            return None
        if not pair.is_buffer or self.buffers == "follow":
            layout = mask_layout(pair.teacher, pair.name, self.unit, self.seed, self.group)
        elif self.buffers == "average":
            layout = unmasked(local(pair.teacher))
        else:
            return None
        if self.rounding == "stochastic" and pair.teacher.dtype in HALF:
            return rounded(layout, pair.teacher, pair.name, self.seed)
        return layout


class Plan:
    """The cached execution plan of a teacher's updates from one student.

    Floating buffers and frozen parameters that hold an inf when the plan is built, such as attention masks, are copied:
    their average would be NaN.

    Args:
        teacher: the module to update.
        student: referenced weakly; once it is gone, the plan drops its tensors.
        settings: of the teacher.

    Raises:
        ValueError: the modules do not match, see `pair_tensors`.
        RuntimeError: a CUDA graph is being captured; building a plan reads values.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, settings: Settings):
        self._student = weakref.ref(student, partial(_release, weakref.ref(self)))
        self._settings = settings
        pairs = pair_tensors(teacher, student, buffers=settings.buffers != "keep")
        self._pairs = [pair for pair in pairs if pair.name not in settings.shared]
        self.shared = [(pair.name, pair.student) for pair in pairs if pair.name in settings.shared]
        tensors = [tensor for pair in self._pairs for tensor in (pair.teacher, pair.student)]
        if any(tensor.is_cuda for tensor in tensors) and capturing():
            raise RuntimeError(
                "the first update on these tensors cannot be captured in a CUDA graph; call update once before"
            )
        # What `is_current` compares.
        tables = [*_tables(teacher), *_tables(student)]
        self._tables, self._empty = [table for table in tables if table], [table for table in tables if not table]
        self._names, self._values = self._registered()
        self._sharded = [tensor for tensor in tensors if is_sharded(tensor)]
        self._shards = list(map(local, self._sharded))
        self._locals = list(map(local, tensors))
        self._strided = [t for t in self._locals if type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided]
        self._memory = self._read_memory()
        # What `run` does.
        copied, drawn, free = self._sort()
        self._copied = [local(pair.teacher) for pair in copied], [local(pair.student) for pair in copied]
        self._searched = [local(p.student) for p in copied if p.is_inexact and not _holds_inf(p.teacher)]
        passes = (drawn, free) if settings.own_buffer_momentum else (drawn + free, [])
        self._passes = [kernels.choose(triples) for triples in passes]

    def is_current(self, student: nn.Module, settings: Settings) -> bool:
        """Staleness check: same student and settings, same tensors in both modules, in the same memory and layout."""
        if self._student() is not student or self._settings != settings or any(self._empty):
            return False
        names, values = self._registered()
        return (
            names == self._names
            and all(map(is_, values, self._values))
            and all(map(is_, map(local, self._sharded), self._shards))  # FSDP2 and module.to replace local tensors
            and self._read_memory() == self._memory
        )

    def check_shared(self) -> None:
        """Refuse parameters that a teacher of trainable_only=True shares and that are trained now."""
        for name, parameter in self.shared:
            if parameter.requires_grad:
                raise ValueError(
                    f"{name!r} was frozen when this teacher of trainable_only=True was built, and now requires a "
                    "gradient: build a new Teacher, which copies it"
                )

    def run(self, step: int, momentum: float, preserve_prob: float, buffer_momentum: float) -> None:
        """Update the teacher at a step."""
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)
        # Last, since it evicts from the caches what the copies above share with `is_current`.
        for chosen, own in zip(self._passes, (momentum, buffer_momentum), strict=True):
            for kernel in chosen if own < 1 else ():
                kernel.run(step, threshold(preserve_prob), 1 - own)

    def first_nonfinite(self) -> str | None:
        """The name of a student's tensor that holds an inf or NaN; the same on all ranks that share its shards."""
        moving = [tensor for kernel in itertools.chain(*self._passes) for tensor in kernel.nonfinite()]
        found = set(map(id, moving + nonfinite(self._searched)))
        numbers = (i for i, pair in enumerate(self._pairs) if found and id(local(pair.student)) in found)
        first = least(next(numbers, len(self._pairs)), [pair.student for pair in self._pairs])
        return self._pairs[first].name if first < len(self._pairs) else None

    def _sort(self) -> tuple[list[Pair], list[Triple], list[Triple]]:
        """(copied pairs, triples under the mask, triples averaged at every step)."""
        copied: list[Pair] = []
        drawn: list[Triple] = []
        free: list[Triple] = []
        for pair in self._pairs:
            layout = self._settings.layout(pair)
            frozen = not pair.student.requires_grad
            if layout is None or (frozen and (_holds_inf(pair.student) or _holds_inf(pair.teacher))):
                copied.append(pair)
            else:
                (free if layout.key is None else drawn).append((local(pair.teacher), local(pair.student), layout))
        return copied, drawn, free

    def _registered(self) -> tuple[list[str], list[object]]:
        """Names and values of all parameters, buffers and submodules."""
        chain = itertools.chain.from_iterable
        return list(chain(self._tables)), list(chain(map(dict.values, self._tables)))

    def _read_memory(self) -> list[object]:
        """Address, strides and shape of every tensor."""
        return [
            *map(Tensor.data_ptr, self._strided),
            *map(Tensor.stride, self._strided),
            *map(attrgetter("shape"), self._locals),
        ]


def _tables(module: nn.Module) -> Iterator[dict[str, object]]:
    """The dictionaries in which a module and its submodules register what they own."""
    for submodule in module.modules():
        yield from (submodule._parameters, submodule._buffers, submodule._modules)  # type: ignore[misc]


def _holds_inf(tensor: Tensor) -> bool:
    """Whether a floating tensor holds an inf and no NaN."""
    part = local(tensor).detach()
    if not part.numel():
        return False
    real = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
    return bool(torch.stack(real.aminmax()).isinf().any())


def _release(plan: "weakref.ref[Plan]", student: "weakref.ref[nn.Module]") -> None:
    """Drop all tensors when the student is gone: a teacher that outlives it must not keep its weights alive."""
    if (owner := plan()) is not None:
        vars(owner).clear()
        owner._student = student
