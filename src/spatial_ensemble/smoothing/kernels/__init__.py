"""One signature, several ways to run it: the kernel is chosen by device and dtype, never by the user."""

from torch import Tensor

from spatial_ensemble.smoothing.draw import Keep
from spatial_ensemble.smoothing.kernels import plain


def smooth_(teacher: list[Tensor], student: list[Tensor], keep: Keep, weight: float) -> None:
    """Apply the rule in place to a list of tensors: T <- K * T + (1 - K) * (T + weight * (S - T)).

    Args:
        teacher: local tensors, changed in place; any shapes, strides, dtypes and devices.
        student: their counterparts, of the same shapes.
        keep: the masks K, one place a tensor.
        weight: 1 - m, in [0, 1]. 1 copies, 0 leaves all as it is.
    """
    plain.smooth_(teacher, student, keep, weight)
