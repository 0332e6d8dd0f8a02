"""Which tensors a kernel may handle as flat memory."""

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing.draw import Place


def is_flat(t: Tensor, s: Tensor, place: Place) -> bool:
    """Whether both are plain and dense and alike in memory, so that the kernel may go through it from end to end.

    Elements must lie row by row, unless no draw cares for their order: those of a whole tensor, or of a channel.
    """
    if not (_is_plain(t) and _is_plain(s)):
        return False
    if t.is_contiguous() and s.is_contiguous():
        return True
    if _order(t) != _order(s) or not _is_dense(t):
        return False
    return place.whole or (t.numel() == place.row == t.shape[0] * place.unit_size and t.stride(0) == place.unit_size)


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
