"""The teacher's weights in the student's place, for frameworks that evaluate and save the student's module."""

from typing import Self

import torch
from torch import Tensor, nn

from spatial_ensemble.errors import UserError
from spatial_ensemble.smoothing.pairing import canonical_names, pair_tensors
from spatial_ensemble.smoothing.teacher import Teacher


class Loan:
    """The teacher's weights lent to the student; the student's own are kept and given back, to the bit.

    Args:
        teacher: whose parameters and buffers are lent.
        student: into whose memory they are copied: optimizers, DistributedDataParallel and hooks notice nothing.

    Attributes:
        kept: the student's own tensors by their names in its `state_dict()`, as long as the loan lasts.

    Raises:
        UserError: the student has a tensor that the teacher lacks; it is named, and the student unchanged.

    Example:
        >>> import torch
        >>> from spatial_ensemble import Teacher, temporal_moving_average
        >>> student = torch.nn.Linear(2, 1)
        >>> teacher = Teacher(student, temporal_moving_average(0.99))
        >>> with Loan(teacher, student):
        ...     answer = student(torch.zeros(1, 2))  # the teacher's answer
    """

    @torch.no_grad()
    def __init__(self, teacher: Teacher, student: nn.Module):
        theirs, self._live = _tensors(teacher.module), _tensors(student)
        names, own_names = canonical_names(theirs), canonical_names(self._live)
        lent = {names[name]: tensor for name, tensor in theirs.items()}
        for name, own in own_names.items():
            if own not in lent:
                raise UserError(
                    f"the student's tensor {name!r} is not in the teacher: build the teacher when the student has all "
                    "its layers"
                )
        self._own = {name: tensor.clone() for name, tensor in self._live.items()}
        self.kept = {name: self._own[name] for name in student.state_dict() if name in self._own}
        for name, tensor in self._live.items():
            tensor.copy_(lent[own_names[name]])

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the student's own weights back."""
        for name, tensor in self._live.items():
            tensor.copy_(self._own[name])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.give_back()


@torch.no_grad()
def copy_student(teacher: Teacher, student: nn.Module) -> None:
    """Make the teacher an exact copy of the student, as it was after construction; its step stays."""
    for pair in pair_tensors(teacher.module, student):
        pair.teacher.copy_(pair.student)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """By the names of state_dict, and buffers that it leaves out."""
    saved = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return dict(module.named_buffers(remove_duplicate=False)) | saved
