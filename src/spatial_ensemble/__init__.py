"""Smoothed teachers for student-teacher training: Spatial Ensemble and Spatial-Temporal Smoothing.

    teacher = Teacher(student, spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7))
    ...
    teacher.update(student)  # once per optimizer step

The teacher imports torch on first use, and nothing heavier; import trainings, comparisons and integrations by name.
"""

from typing import TYPE_CHECKING

from spatial_ensemble.errors import UserError
from spatial_ensemble.smoothing import (
    Schedule,
    Smoothing,
    constant,
    cosine,
    delayed,
    half_life,
    linear,
    power,
    spatial_ensemble,
    spatial_temporal_smoothing,
    temporal_moving_average,
    warmup,
)

if TYPE_CHECKING:
    from spatial_ensemble.smoothing import Teacher, distance, fraction_replaced
else:

    def __getattr__(name: str) -> object:  # what needs torch is imported on first use
        if name in ("Teacher", "distance", "fraction_replaced"):
            from spatial_ensemble import smoothing

            return getattr(smoothing, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Schedule",
    "Smoothing",
    "Teacher",
    "UserError",
    "constant",
    "cosine",
    "delayed",
    "distance",
    "fraction_replaced",
    "half_life",
    "linear",
    "power",
    "spatial_ensemble",
    "spatial_temporal_smoothing",
    "temporal_moving_average",
    "warmup",
]
