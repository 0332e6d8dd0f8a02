"""Which tensors a kernel may treat as flat memory."""

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing.units import MaskLayout


def is_flat(t: Tensor, s: Tensor, layout: MaskLayout) -> bool:
    """Whether both tensors are plain, dense and laid out alike, so that a kernel may run through their memory.

    Memory order must be row-major, unless the draws do not depend on it: one for the whole tensor, or one a channel,
    and no stochastic rounding.
    """
    if not (_is_plain(t) and _is_plain(s)):
        return False
    if t.is_contiguous() and s.is_contiguous():
        return True
    if layout.rounding is not None or _order(t) != _order(s) or not _is_dense(t):
        return False
    if layout.whole:
        return True
    return t.numel() == layout.row == t.shape[0] * layout.unit_size and t.stride(0) == layout.unit_size


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_neg()


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    return [(stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(_order(tensor)):
        if stride != expected:
            return False
        expected *= size
    return True
