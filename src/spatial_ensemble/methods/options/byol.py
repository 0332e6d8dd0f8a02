"""Options of BYOL."""

from dataclasses import dataclass

from spatial_ensemble.methods.options import TeacherNorm, at_least, check_types


@dataclass(frozen=True)
class BYOLOptions:
    """Options of BYOL.

    Args:
        hidden_dim: hidden size of the projector and of the predictor.
        projection_dim: size of the projections.
        teacher_norm: statistics used by the teacher's BatchNorm: those of the batch ("batch", as the original), or its
            smoothed ones ("running", as EMAN).
    """

    hidden_dim: int = 4096
    projection_dim: int = 256
    teacher_norm: TeacherNorm = "batch"

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "hidden_dim", "projection_dim")
