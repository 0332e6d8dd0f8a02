"""Smoothed teachers for student-teacher training: Spatial Ensemble and Spatial-Temporal Smoothing.

    teacher = Teacher(student, spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7))
    ...
    teacher.update(student)  # once per optimizer step

Importing this imports torch and nothing heavier; trainings, comparisons and integrations are imported by their names.
"""

from spatial_ensemble.errors import UserError
from spatial_ensemble.smoothing import (
    Schedule,
    Smoothing,
    Teacher,
    constant,
    cosine,
    distance,
    fraction_replaced,
    linear,
    spatial_ensemble,
    spatial_temporal_smoothing,
    temporal_moving_average,
    warmup,
)

__all__ = [
    "Schedule",
    "Smoothing",
    "Teacher",
    "UserError",
    "constant",
    "cosine",
    "distance",
    "fraction_replaced",
    "linear",
    "spatial_ensemble",
    "spatial_temporal_smoothing",
    "temporal_moving_average",
    "warmup",
]
