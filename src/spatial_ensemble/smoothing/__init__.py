"""The mechanism: the rule, its units, its draws, its schedules and the teacher. Imports torch and nothing else."""

from spatial_ensemble.smoothing.diagnostics import distance, fraction_replaced
from spatial_ensemble.smoothing.rule import (
    Schedule,
    Smoothing,
    spatial_ensemble,
    spatial_temporal_smoothing,
    temporal_moving_average,
)
from spatial_ensemble.smoothing.schedule import constant, cosine, linear, warmup
from spatial_ensemble.smoothing.teacher import Teacher

__all__ = [
    "Schedule",
    "Smoothing",
    "Teacher",
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
