"""Pairs of a teacher's and a student's tensors, matched by canonical name, never by order."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing.shards import is_sharded, local, reshard

# Parts of names added by DistributedDataParallel, torch.compile, activation checkpointing and Lightning Fabric.
_WRAPPERS = frozenset({"module", "_orig_mod", "_checkpoint_wrapped_module", "_forward_module", "_original_module"})


def canonical_name(name: str) -> str:
    """A tensor's name without the parts that wrappers add.

    Example:
        >>> canonical_name("module._orig_mod.layer1.0._checkpoint_wrapped_module.conv.weight")
        'layer1.0.conv.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def canonical_names(named: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> canonical name.

    If two tensors would get the same canonical name, all names are kept: a submodule is merely named like a wrapper.

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
    """A tensor of the teacher and the student's counterpart; a tied weight is one pair, under its first name."""

    name: str
    teacher: Tensor
    student: Tensor
    is_buffer: bool

    @property
    def is_inexact(self) -> bool:
        """Whether both can be averaged: floating or complex, and not in float8, which has no arithmetic."""
        return all(
            tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize > 1)
            for tensor in (self.teacher, self.student)
        )


def pair_tensors(teacher: nn.Module, student: nn.Module, *, buffers: bool = True) -> list[Pair]:
    """All pairs of a teacher's and a student's tensors, sorted by name.

    Args:
        teacher, student: the modules; FSDP2's shards are put back into them.
        buffers: whether to pair buffers too.

    Raises:
        ValueError: a tensor is missing, extra, of another shape, sharded differently or no longer tied; it is named.
    """
    reshard(teacher, student)
    theirs, students = named_tensors(teacher, buffers), named_tensors(student, buffers)
    missing, extra = sorted(theirs.keys() - students.keys()), sorted(students.keys() - theirs.keys())
    if missing or extra:
        found = "; ".join(f"{what} {_some(names)}" for what, names in (("missing", missing), ("extra", extra)) if names)
        raise ValueError(
            f"the student does not match the teacher: {found}; pass a student of the architecture the teacher was "
            "built from"
        )
    for name, (t, _) in theirs.items():
        s = students[name][0]
        if t.shape != s.shape or _sharding(t) != _sharding(s):
            raise ValueError(
                f"the student's tensor {name!r} has shape {_describe(s)}, the teacher's {_describe(t)}; "
                "they must have the same shape and sharding"
            )
    first: dict[Hashable, str] = {}
    for name in sorted(theirs):
        first.setdefault(_tie(*theirs[name]), name)
    for name, entry in theirs.items():
        one = first[_tie(*entry)]
        if _tie(*students[name]) != _tie(*students[one]):
            raise ValueError(
                f"{one!r} and {name!r} are one tied tensor in the teacher, and two in the student: tie "
                "them again, or build a new Teacher from this student"
            )
    return [Pair(name, theirs[name][0], students[name][0], theirs[name][1]) for name in first.values()]


def memory(tensor: Tensor) -> Hashable:
    """Equal for tensors that are the same object or share memory, as tied weights do after `assign=True`."""
    part = local(tensor)
    if type(part) in (Tensor, nn.Parameter) and part.layout == torch.strided and part.data_ptr():
        return part.device, part.data_ptr(), part.shape, part.stride()
    return id(tensor)


def _tie(tensor: Tensor, is_buffer: bool) -> Hashable:
    """Equal for tied tensors. Buffers that share memory are not tied: one of them may be re-assigned later."""
    return id(tensor) if is_buffer else memory(tensor)


def named_tensors(module: nn.Module, buffers: bool) -> dict[str, tuple[Tensor, bool]]:
    """Canonical name -> (tensor, whether it is a buffer), with every name of a tied tensor."""
    module = unwrap(module)
    named: dict[str, tuple[Tensor, bool]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        named[name] = parameter, False
    for name, buffer in module.named_buffers(remove_duplicate=False):
        named[name] = buffer, True
    names = canonical_names({name: tensor for name, (tensor, _) in named.items()})
    return {names[name]: entry for name, entry in named.items() if buffers or not entry[1]}


def _sharding(tensor: Tensor) -> tuple[object, ...] | None:
    """A DTensor's placements and ranks; None for a tensor that is not sharded."""
    return (*tensor.placements, tensor.device_mesh.mesh.tolist()) if is_sharded(tensor) else None


def _describe(tensor: Tensor) -> str:
    where = f" sharded {tensor.placements} over {tensor.device_mesh}" if is_sharded(tensor) else ""
    where += " (a partition of DeepSpeed ZeRO-3, which is not supported)" if hasattr(tensor, "ds_id") else ""
    return f"{tuple(tensor.shape)}{where}"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
