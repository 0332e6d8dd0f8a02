"""Options of FixMatch."""

from dataclasses import dataclass
from typing import Literal

from spatial_ensemble.methods.options import TeacherNorm, at_least, check_types, require


@dataclass(frozen=True)
class FixMatchOptions:
    """Options of FixMatch.

    Args:
        threshold: minimum confidence of a pseudo-label, in [0, 1].
        unlabelled_weight: weight of the unlabelled loss; 0 trains on the labels alone.
        unlabelled_ratio: unlabelled images per labelled image in a batch.
        labels_from: which network labels the weak views: "teacher", or "student" as in the original FixMatch.
        labelled_apart: pass the labelled images through the student in a forward pass of their own.
        teacher_norm: statistics used by the BatchNorm of a labelling teacher: its smoothed ones ("running", as EMAN),
            or those of the weak views ("batch").
    """

    threshold: float = 0.95
    unlabelled_weight: float = 1.0
    unlabelled_ratio: int = 7
    labels_from: Literal["teacher", "student"] = "teacher"
    labelled_apart: bool = False
    teacher_norm: TeacherNorm = "running"

    def __post_init__(self) -> None:
        check_types(self)
        require(self, lambda value: 0 <= value <= 1, "a confidence from 0 to 1", "threshold")
        at_least(self, 0, "unlabelled_weight")
        at_least(self, 1, "unlabelled_ratio")
