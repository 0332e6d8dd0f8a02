"""What one training step sees."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One step's images: a tensor a view, float, [batch, channels, height, width], normalised.

    `labelled` and `unlabelled` hold the views in the order in which the method names them; `labels` is int64 [batch].
    A named tuple, because Lightning's and DDP's wrappers look for tensors inside their arguments.
    """

    step: int
    labelled: tuple[Tensor, ...]
    labels: Tensor
    unlabelled: tuple[Tensor, ...]
