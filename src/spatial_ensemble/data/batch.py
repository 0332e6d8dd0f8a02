"""The input of one training step."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One step's images: a float tensor per view, [batch, channels, height, width], normalised.

    `labelled` and `unlabelled` hold the views in the method's order; `labels` is int64 [batch]. A named tuple, because
    the wrappers of Lightning and DDP look for tensors inside their arguments.
    """

    step: int
    labelled: tuple[Tensor, ...]
    labels: Tensor
    unlabelled: tuple[Tensor, ...]
