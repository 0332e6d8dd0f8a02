"""DTensor and FSDP2; neither is imported here, since that takes seconds."""

import math
import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is a DTensor, judged by an attribute so that nothing is imported."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor._local_tensor if is_sharded(tensor) else tensor  # to_local creates a view, at 100 times the cost


def is_fsdp(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to a module or a submodule."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(part, fsdp.FSDPModule) for part in module.modules())


def reshard(*modules: nn.Module) -> None:
    """Put FSDP2's shards back into the modules, without communication.

    After a forward without a backward the root module still holds gathered weights, possibly in the dtype of its mixed
    precision.

    Raises:
        ValueError: a module of FSDP1, whose flat shards mix tensors of many names.
    """
    if (fsdp := sys.modules.get("torch.distributed.fsdp")) is None:
        return
    for module in modules:
        for part in module.modules():
            if isinstance(part, fsdp.FullyShardedDataParallel):
                raise ValueError(
                    "cannot smooth a FullyShardedDataParallel module: its flat shards mix tensors of many names; "
                    "shard student and teacher.module by torch.distributed.fsdp.fully_shard instead"
                )
            if isinstance(part, fsdp.FSDPModule):
                part.reshard()


def rows(tensor: Tensor, name: str) -> tuple[int, int, int]:
    """(row, stride, offset): which elements of the global tensor this rank holds; see `units.MaskLayout`.

    Raises:
        ValueError: the placement is partial, or the shard is not one run of equal rows.
    """
    everything = tensor.numel(), tensor.numel(), 0
    if not is_sharded(tensor):
        return everything
    if any(placement.is_partial() for placement in tensor.placements):
        raise ValueError(f"cannot draw for {name!r}: its placements {tensor.placements} are partial; redistribute it")
    (chunk,) = tensor.__create_chunk_list__()
    shape, sizes, offsets = tuple(tensor.shape), tuple(chunk.sizes), tuple(chunk.offsets)
    cut = [dim for dim, size in enumerate(sizes) if size != shape[dim]]
    if not cut or 0 in sizes:
        return everything
    if sizes != tuple(local(tensor).shape) or (len(cut) > 1 and math.prod(sizes[: cut[-2]]) > 1):
        raise ValueError(
            f"cannot draw for {name!r}: its placements {tensor.placements} shard {shape} along dimensions {cut}; "
            "shard along one dimension, or along dimension 0 and one other"
        )
    last = cut[-1]
    first = sum(offsets[dim] * math.prod(shape[dim + 1 : last]) for dim in range(last))
    row, stride = math.prod(sizes[last:]), math.prod(shape[last:])
    return row, stride, first * stride + offsets[last] * math.prod(shape[last + 1 :])


def least(value: int, tensors: list[Tensor]) -> int:
    """The least value over the ranks that share these tensors' shards; no communication if none is sharded."""
    meshes = [tensor.device_mesh for tensor in tensors if is_sharded(tensor)]
    groups = {group.group_name: (group, mesh.device_type) for mesh in meshes for group in mesh.get_all_groups()}
    for group, device in groups.values():  # with FSDP and tensor parallelism some tensors have only one of the groups
        flag = torch.tensor(value, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=group)
        value = int(flag)
    return value
