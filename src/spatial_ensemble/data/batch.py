"""What one training step sees."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One step's images: a tensor a view, float, [batch, channels, height, width], normalised.

    `labelled` and `unlabelled` hold the views in the order in which the method names them; `labels` is int64 [batch].
    """

    step: int
    labelled: tuple[Tensor, ...]
    labels: Tensor
    unlabelled: tuple[Tensor, ...]
