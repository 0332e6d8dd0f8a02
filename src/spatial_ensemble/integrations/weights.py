"""The teacher's weights in the student's place, for frameworks that evaluate and save the student's module."""

from typing import Self

from torch import nn

from spatial_ensemble.smoothing.swap import copy_from
from spatial_ensemble.smoothing.teacher import Teacher


class Loan:
    """`Teacher.swap` for callbacks: exchange weights until `give_back`, or the end of a `with` block.

    Args:
        teacher: refuses to be used until then.
        student: evaluates and is saved as the teacher.

    Raises:
        ValueError: the student does not match the teacher; neither is changed.

    Example:
        >>> import torch
        >>> from spatial_ensemble import Teacher, temporal_moving_average
        >>> student = torch.nn.Linear(2, 1)
        >>> teacher = Teacher(student, temporal_moving_average(0.99))
        >>> with Loan(teacher, student):
        ...     answer = student(torch.zeros(1, 2))  # the teacher's answer
    """

    def __init__(self, teacher: Teacher, student: nn.Module):
        self.teacher, self.student = teacher, student
        self._swap = teacher.swap(student)

    def give_back(self) -> None:
        """Give both networks their own weights back, to the bit."""
        self._swap.undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.give_back()


def copy_student(teacher: Teacher, student: nn.Module) -> None:
    """Make the teacher an exact copy of the student, as it was after construction; its step stays."""
    copy_from(teacher.module, student)
