"""Options of Mean Teacher."""

from dataclasses import dataclass

from spatial_ensemble.methods.options import TeacherNorm, at_least, check_types


@dataclass(frozen=True)
class MeanTeacherOptions:
    """Options of Mean Teacher.

    Args:
        consistency_weight: weight of the consistency loss after the ramp-up; 0 trains on the labels alone.
        ramp_up_steps: steps over which that weight rises from about 0; 0 is off.
        unlabelled_ratio: unlabelled images per labelled image in a batch.
        teacher_norm: statistics used by the teacher's BatchNorm: those of the batch ("batch", as the original), or its
            smoothed ones ("running").
    """

    consistency_weight: float = 50.0
    ramp_up_steps: int = 0
    unlabelled_ratio: int = 1
    teacher_norm: TeacherNorm = "batch"

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 0, "consistency_weight", "ramp_up_steps")
        at_least(self, 1, "unlabelled_ratio")
