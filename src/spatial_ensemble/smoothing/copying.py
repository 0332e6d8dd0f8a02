"""The teacher's first copy of a student, and the frozen parameters that both may share."""

import itertools
from collections.abc import Collection
from copy import deepcopy

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing.pairing import canonical_names, memory, named_tensors
from spatial_ensemble.smoothing.shards import is_fsdp, reshard


def check_tensors(module: nn.Module, what: str, dtype: torch.dtype | None) -> None:
    """Refuse scripted modules, tensors without values, and complex ones that a real dtype would truncate."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise ValueError(
            f"the {what} is scripted, and its tensors cannot be replaced: build the Teacher from the module before "
            "torch.jit, update it by that module, and script teacher.module"
        )
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError(f"the {what}'s tensor {name!r} is lazy and uninitialised: run one batch through it first")
        if tensor.is_meta:
            raise ValueError(
                f"the {what}'s tensor {name!r} is on the meta device and has no values: call to_empty and initialise "
                "it before building the Teacher"
            )
        if hasattr(tensor, "ds_id") and not tensor.numel():
            raise ValueError(
                f"the {what}'s tensor {name!r} is partitioned by DeepSpeed ZeRO-3, which a Teacher does not support: "
                "use ZeRO-1 or ZeRO-2, or shard by torch.distributed.fsdp.fully_shard"
            )
        if dtype is not None and tensor.is_complex() and not dtype.is_complex:
            raise ValueError(f"dtype={dtype} would drop the imaginary part of {name!r} ({tensor.dtype}): leave it out")


def copy(student: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Module:
    """A copy of a student on a device and in a dtype."""
    return _deepcopy(student, []).to(device=device, dtype=dtype)


def copy_trainable(
    student: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[nn.Module, frozenset[str]]:
    """A copy that shares the student's frozen parameters, and their canonical names.

    Args:
        student: the network to copy, unwrapped.
        device: must be that of the frozen parameters.
        dtype: of trainable parameters, and of floating buffers beside them in one module.

    Raises:
        ValueError: nothing is trainable, a frozen parameter is elsewhere, or the student is sharded.
    """
    _refuse_fsdp(student)
    named = named_tensors(student, buffers=True)
    parameters = {name: tensor for name, (tensor, is_buffer) in named.items() if not is_buffer}
    trained = {memory(parameter) for parameter in parameters.values() if parameter.requires_grad}
    if not trained:
        raise ValueError("trainable_only=True, but no parameter of the student requires a gradient")
    frozen = {name: parameter for name, parameter in parameters.items() if memory(parameter) not in trained}
    where = None if device is None else torch.empty(0, device=device).device
    for name, parameter in frozen.items():
        if where is not None and parameter.device != where:
            raise ValueError(
                f"trainable_only=True shares the frozen {name!r} on {parameter.device} with the student: leave out "
                f"device={str(device)!r}"
            )
    module = _deepcopy(student, list(frozen.values()))
    kept = set(map(id, frozen.values()))
    for part in module.modules():
        if kept.issuperset(map(id, part.parameters(recurse=False))):
            kept.update(map(id, part.buffers(recurse=False)))  # which must fit the part's frozen parameters

    def convert(tensor: Tensor) -> Tensor:
        inexact = tensor.is_floating_point() or tensor.is_complex()
        return tensor.to(device=device, dtype=dtype if inexact and id(tensor) not in kept else None)

    # `module.to` would convert the student's frozen parameters.
    return (module if device is None and dtype is None else module._apply(convert)), frozenset(frozen)


def share(module: nn.Module, student: nn.Module, names: Collection[str]) -> None:
    """Put the student's parameters of these canonical names into a teacher's module, if they are not there.

    They part when a teacher is copied or unpickled, or when the student's parameters are replaced.

    Raises:
        ValueError: a module is sharded by fully_shard, which replaces the parameters of each module by its own.
    """
    _refuse_fsdp(module, student)
    theirs = named_tensors(student, buffers=True)
    own: dict[str, Tensor] = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    for name, canonical in canonical_names(own).items():
        if canonical in names and canonical in theirs and own[name] is not theirs[canonical][0]:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, theirs[canonical][0])


def _refuse_fsdp(*modules: nn.Module) -> None:
    if any(map(is_fsdp, modules)):
        raise ValueError("trainable_only=True does not support fully_shard: leave out one of them")


def _deepcopy(student: nn.Module, shared: list[Tensor]) -> nn.Module:
    reshard(student)  # raises for FSDP1
    if is_fsdp(student):
        raise ValueError(
            "the student is sharded by fully_shard, and such a module cannot be copied. Either build the teacher first "
            "and shard both alike: teacher = Teacher(student, ...); fully_shard(student); fully_shard(teacher.module). "
            "Or pass a copy that is sharded alike: Teacher(student, ..., module=ready_sharded_copy)"
        )
    try:
        return deepcopy(student, {id(parameter): parameter for parameter in shared})
    except Exception as error:  # whatever the student's own classes raise
        raise ValueError(
            f"the student cannot be copied ({type(error).__name__}: {str(error).splitlines()[0][:200]}). "
            "Build a second network by the same code and pass it: Teacher(student, ..., module=second)"
        ) from error
