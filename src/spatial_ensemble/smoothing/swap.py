"""The teacher's weights in the student's tensors: exchanged in place for an evaluation, or copied for good."""

from typing import Self

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing.pairing import Pair, memory, pair_tensors
from spatial_ensemble.smoothing.shards import local, reshard

CHUNK = 1 << 20  # elements exchanged at a time, which bounds the temporary memory


class Swap:
    """Teacher and student with their weights exchanged, until `undo` or the end of a `with` block.

    Values move, tensors stay: optimizers, DistributedDataParallel, fully_shard and compiled code keep their references.
    Tensors of one dtype and device are exchanged piece by piece. Where they differ (a float32 teacher of a bfloat16
    student), the student gets rounded values and its own are kept on the teacher's device, so both come back exact.

    Args:
        teacher: the teacher's module.
        student: the network as it is trained, perhaps wrapped.

    Raises:
        ValueError: the student does not match the teacher; neither is changed.
    """

    @torch.no_grad()
    def __init__(self, teacher: nn.Module, student: nn.Module):
        self._modules: tuple[nn.Module, ...] = teacher, student
        # Tensors that teacher and student share need no exchange.
        pairs = [pair for pair in pair_tensors(teacher, student) if memory(pair.teacher) != memory(pair.student)]
        self._alike = [pair for pair in pairs if _alike(pair)]
        unlike = [pair for pair in pairs if not _alike(pair)]
        self._kept = [(pair, local(pair.student).to(pair.teacher.device, copy=True)) for pair in unlike]
        for pair in self._alike:
            _exchange(local(pair.teacher), local(pair.student))
        for pair in unlike:
            local(pair.student).copy_(local(pair.teacher))

    @property
    def active(self) -> bool:
        """Whether the weights are exchanged now."""
        return bool(self._modules)

    @torch.no_grad()
    def undo(self) -> None:
        """Give both networks their own weights back; does nothing the second time."""
        reshard(*self._modules)  # an FSDP2 root stays gathered after a forward without a backward
        for pair in self._alike:
            _exchange(local(pair.teacher), local(pair.student))
        for pair, own in self._kept:
            local(pair.student).copy_(own)
        self._modules, self._alike, self._kept = (), [], []  # the teacher must not hold the student

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()


@torch.no_grad()
def copy_to(teacher: nn.Module, student: nn.Module) -> None:
    """Overwrite the student's parameters and buffers with the teacher's."""
    for pair in pair_tensors(teacher, student):
        local(pair.student).copy_(local(pair.teacher))


@torch.no_grad()
def copy_from(teacher: nn.Module, student: nn.Module) -> None:
    """Overwrite the teacher's parameters and buffers with the student's."""
    for pair in pair_tensors(teacher, student):
        local(pair.teacher).copy_(local(pair.student))


def _alike(pair: Pair) -> bool:
    return pair.teacher.dtype == pair.student.dtype and pair.teacher.device == pair.student.device


def _exchange(one: Tensor, other: Tensor) -> None:
    if one.numel() > CHUNK and len(one) > 1:
        rows = max(CHUNK * len(one) // one.numel(), 1)
        for pieces in zip(one.split(rows), other.split(rows), strict=True):
            _exchange_whole(*pieces)
    else:
        _exchange_whole(one, other)


def _exchange_whole(one: Tensor, other: Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)
