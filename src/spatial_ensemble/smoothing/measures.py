"""Measures of a teacher."""

from torch import nn

from spatial_ensemble.smoothing import diagnostics
from spatial_ensemble.smoothing.teacher import Teacher


def fraction_replaced(teacher: Teacher) -> float:
    """The share of all weights under the mask that moved at the last update that acted; 1 - p on average.

    Example:
        >>> from spatial_ensemble import Teacher, spatial_ensemble
        >>> student = nn.Linear(4, 2)
        >>> teacher = Teacher(student, spatial_ensemble(preserve_prob=0.0))
        >>> teacher.update(student)
        >>> fraction_replaced(teacher)
        1.0
    """
    return diagnostics.fraction_moved(teacher.mask_layouts(), teacher.smoothing, teacher.step, teacher.update_every)


def distance(teacher: Teacher, student: nn.Module) -> dict[str, float]:
    """Canonical name -> Euclidean distance between a teacher's floating tensor and the student's.

    For sharded tensors it is the distance of the whole ones, and all their ranks must call it.

    Example:
        >>> from spatial_ensemble import Teacher, spatial_ensemble
        >>> student = nn.Linear(4, 2)
        >>> distance(Teacher(student, spatial_ensemble(0.5)), student)
        {'bias': 0.0, 'weight': 0.0}
    """
    return diagnostics.distances(teacher._pairs(student))
