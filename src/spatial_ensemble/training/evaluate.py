"""How good the networks of a run are."""

from typing import Literal

from torch import nn

from spatial_ensemble.data.images import ImageData
from spatial_ensemble.evaluation import accuracy

Protocol = Literal["accuracy", "knn", "linear"]
Which = Literal["teacher", "student"]


def measure(student: nn.Module, data: ImageData, protocol: Protocol, *, seed: int = 0) -> float:
    """One number in per cent.

    Args:
        student: a network with its `backbone`.
        data: normalised by its own mean and std.
        protocol: accuracy of the network's own outputs, of its backbone's nearest neighbours, or of a linear probe.
        seed: of the linear probe.
    """
    if protocol == "accuracy":
        return accuracy(student, data.test, data.mean, data.std)
    raise NotImplementedError(protocol)
