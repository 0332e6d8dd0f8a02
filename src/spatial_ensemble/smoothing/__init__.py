"""The mechanism: rule, schedules, units, draws and the teacher. Rule and schedules import no torch."""

from typing import TYPE_CHECKING

from spatial_ensemble.smoothing.rule import (
    Schedule,
    Smoothing,
    spatial_ensemble,
    spatial_temporal_smoothing,
    temporal_moving_average,
)
from spatial_ensemble.smoothing.schedule import constant, cosine, delayed, half_life, linear, power, warmup

if TYPE_CHECKING:
    from spatial_ensemble.smoothing.measures import distance, fraction_replaced
    from spatial_ensemble.smoothing.teacher import Teacher
else:

    def __getattr__(name: str) -> object:  # what needs torch is imported on first use
        if name in ("Teacher", "distance", "fraction_replaced"):
            from spatial_ensemble.smoothing import measures

            return getattr(measures, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Schedule",
    "Smoothing",
    "Teacher",
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
