"""What every kernel provides."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from spatial_ensemble.smoothing.units import MaskLayout

# Local tensor of the teacher, changed in place; the student's of the same shape; the layout of the mask.
Triple = tuple[Tensor, Tensor, MaskLayout]


class Kernel(Protocol):
    """The rule over fixed triples of tensors, step after step.

        T <- K * T + (1 - K) * (T + weight * (S - T)),    weight = 1 - m

    A kernel may keep addresses: it is valid while its tensors keep their memory, shapes and strides, which
    `update.Plan.is_current` checks. Values are rounded as by `torch.lerp`; with a key for rounding, the student is cast
    to the teacher's dtype, the rule computed in float32, and `rounding.stochastic` applied, unless the weight is 1.
    """

    def __init__(self, triples: Sequence[Triple]) -> None: ...

    @staticmethod
    def takes(t: Tensor, s: Tensor, layout: MaskLayout) -> bool:
        """Whether the kernel supports these devices, dtypes and memory layouts."""

    def run(self, step: int, threshold: int, weight: float) -> None:
        """One update: preserve where a draw is below the threshold; weight in (0, 1], of which 1 copies."""

    def nonfinite(self) -> list[Tensor]:
        """The student's tensors that hold an inf or NaN; waits for a GPU."""
