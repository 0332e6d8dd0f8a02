"""Which tensor of the student belongs to which tensor of the teacher: by canonical name, never by order."""

import itertools
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from operator import is_

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing.shards import is_sharded, local, reshard

# What DistributedDataParallel, torch.compile, activation checkpointing and Lightning Fabric put into names.
_WRAPPERS = frozenset({"module", "_orig_mod", "_checkpoint_wrapped_module", "_forward_module", "_original_module"})


def canonical_name(name: str) -> str:
    """A tensor's name without what wrappers add to it.

    Example:
        >>> canonical_name("module._orig_mod.layer1.0._checkpoint_wrapped_module.conv.weight")
        'layer1.0.conv.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def canonical_names(named: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> canonical name; names stay as they are where two tensors would come to one, since then a submodule is
    called like a wrapper without being one.

    Example:
        >>> canonical_names({"module.weight": torch.ones(1)})
        {'module.weight': 'weight'}
        >>> canonical_names({"module.weight": torch.ones(1), "weight": torch.ones(1)})
        {'module.weight': 'module.weight', 'weight': 'weight'}
    """
    first: dict[str, Hashable] = {}
    for name, tensor in named.items():
        if first.setdefault(canonical_name(name), memory(tensor)) != memory(tensor):
            return {name: name for name in named}
    return {name: canonical_name(name) for name in named}


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        elif isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module = compiled
        else:
            return module


@dataclass(frozen=True)
class Pair:
    """One tensor of the teacher and its counterpart; a tied weight is one pair, under the first of its names."""

    name: str
    teacher: Tensor
    student: Tensor
    is_buffer: bool


class Pairing:
    """All pairs of a teacher and a student, valid until either module holds other tensors.

    Args:
        teacher, student: the modules.
        buffers: whether buffers take part.

    Raises:
        ValueError: a tensor that is missing, extra, of another shape, otherwise sharded or no longer tied; it is named.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, *, buffers: bool = True):
        reshard(teacher, student)
        theirs, students = _named_tensors(teacher, buffers), _named_tensors(student, buffers)
        missing, extra = sorted(theirs.keys() - students.keys()), sorted(students.keys() - theirs.keys())
        if missing or extra:
            raise ValueError(
                "the student does not match the teacher: "
                + "; ".join(
                    f"{what} {_some(names)}" for what, names in (("missing", missing), ("extra", extra)) if names
                )
                + "; give the teacher a student of the architecture it was built from"
            )
        for name, (t, _) in theirs.items():
            s = students[name][0]
            if t.shape != s.shape or _layout(t) != _layout(s):
                raise ValueError(
                    f"the student's tensor {name!r} has shape {_describe(s)}, the teacher's {_describe(t)}; "
                    "they must have the same shape and be sharded alike"
                )
        first: dict[Hashable, str] = {}
        for name in sorted(theirs):
            first.setdefault(_tie(*theirs[name]), name)
        self.pairs = [Pair(name, theirs[name][0], students[name][0], theirs[name][1]) for name in first.values()]
        for name, entry in theirs.items():
            one = first[_tie(*entry)]
            if _tie(*students[name]) != _tie(*students[one]):
                raise ValueError(
                    f"{one!r} and {name!r} are one tied tensor in the teacher, and two in the student: tie "
                    "them again, or build a new Teacher from this student"
                )
        owners = [*_owners(teacher), *_owners(student)]
        self._owners, self._empty = [owner for owner in owners if owner], [owner for owner in owners if not owner]
        self._keys, self._values = self._owned()

    def holds(self) -> bool:
        """Whether both modules still own the very tensors and submodules that were paired; costs microseconds."""
        keys, values = self._owned()
        return keys == self._keys and all(map(is_, values, self._values)) and not any(self._empty)

    def _owned(self) -> tuple[list[str], list[object]]:
        chain = itertools.chain.from_iterable
        return list(chain(self._owners)), list(chain(map(dict.values, self._owners)))


def memory(tensor: Tensor) -> Hashable:
    """The same for tensors that are one, or that lie in the same memory, as tied weights do after `assign=True`."""
    part = local(tensor)
    if type(part) in (Tensor, nn.Parameter) and part.layout == torch.strided and part.data_ptr():
        return part.device, part.data_ptr(), part.shape, part.stride()
    return id(tensor)


def _tie(tensor: Tensor, is_buffer: bool) -> Hashable:
    """The same for tied ones; buffers that share memory may part later, when one is assigned anew."""
    return id(tensor) if is_buffer else memory(tensor)


def _named_tensors(module: nn.Module, buffers: bool) -> dict[str, tuple[Tensor, bool]]:
    """Canonical name -> (tensor, is it a buffer), every name of a tied tensor included."""
    module = unwrap(module)
    named: dict[str, tuple[Tensor, bool]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        named[name] = parameter, False
    for name, buffer in module.named_buffers(remove_duplicate=False):
        named[name] = buffer, True
    names = canonical_names({name: tensor for name, (tensor, _) in named.items()})
    return {names[name]: entry for name, entry in named.items() if buffers or not entry[1]}


def _owners(module: nn.Module) -> Iterator[dict[str, object]]:
    for submodule in module.modules():
        yield from (submodule._parameters, submodule._buffers, submodule._modules)  # type: ignore[misc]


def _layout(tensor: Tensor) -> tuple[object, ...] | None:
    """How a tensor is cut, and which rank has which part."""
    return (*tensor.placements, tensor.device_mesh.mesh.tolist()) if is_sharded(tensor) else None


def _describe(tensor: Tensor) -> str:
    where = f" sharded {tensor.placements} over {tensor.device_mesh}" if is_sharded(tensor) else ""
    return f"{tuple(tensor.shape)}{where}"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
