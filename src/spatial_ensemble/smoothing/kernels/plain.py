"""The rule in plain torch: on every device and dtype, with the same bits as the other kernels."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spatial_ensemble.smoothing.draw import Keep, Place, draws_at, draws_between

CHUNK = 1 << 15  # elements handled at a time, so that temporary memory does not grow with the model


def smooth_(teacher: list[Tensor], student: list[Tensor], keep: Keep, weight: float) -> None:
    if weight == 0:
        return
    replaced = whole_replaced(keep)
    for t, s, place, replace in zip(teacher, student, keep.places, replaced, strict=True):
        if place.whole:
            if replace:
                _mix_(t, s, weight)
        elif t.device.type == "cpu" and t.ndim and t.numel() == t.shape[0] * place.unit_size:
            _mix_rows_(t, s, place, keep, weight)
        else:
            _mix_fragments_(t, s, place, keep, weight)


def whole_replaced(keep: Keep) -> list[bool]:
    """Which tensors of the list are not preserved, for those on which one draw decides."""
    keyed = [i for i, place in enumerate(keep.places) if place.key is not None]
    words = torch.tensor([keep.places[i].key for i in keyed], dtype=torch.int64).reshape(-1, 2)
    draws = draws_at((words[:, 0], words[:, 1]), keep.step, torch.zeros(len(keyed), dtype=torch.int64))
    replaced = [True] * len(keep.places)
    for i, replace in zip(keyed, (draws >= keep.threshold).tolist(), strict=True):
        replaced[i] = replace
    return replaced


def _mix_(t: Tensor, s: Tensor, weight: float) -> None:
    """T <- T + weight * (S - T), rounded as `torch.lerp` rounds it: `AveragedModel` to the bit."""
    if weight == 1:
        t.copy_(s)
    elif t.dtype == s.dtype and t.device == s.device:
        t.lerp_(s, weight)
    else:
        for _, t_piece, s_piece in _pieces(t, s):
            t_piece.lerp_(s_piece.to(t.device, t.dtype), weight)


def _mix_rows_(t: Tensor, s: Tensor, place: Place, keep: Keep, weight: float) -> None:
    """Channels on the CPU: a unit is a slice along dimension 0, and preserved ones are not touched."""
    assert place.key is not None
    first = place.offset // place.unit_size
    draws = draws_between(place.key, keep.step, first, first + t.shape[0])
    rows = (draws >= keep.threshold).nonzero().flatten()
    if place.unit_size >= CHUNK:
        for row in rows.tolist():
            _mix_(t[row], s[row], weight)
        return
    for part in rows.split(CHUNK // place.unit_size):
        moved = s[part].to(t.device, t.dtype)
        t[part] = moved if weight == 1 else t[part].lerp_(moved, weight)


def _mix_fragments_(t: Tensor, s: Tensor, place: Place, keep: Keep, weight: float) -> None:
    for start, t_piece, s_piece in _pieces(t, s):
        mask = (_piece_draws(place, keep, start, t_piece) < keep.threshold).view(t_piece.shape)
        moved = s_piece.to(t.device, t.dtype)
        if weight != 1:
            moved = t_piece.lerp(moved, weight)
        t_piece.copy_(torch.where(mask, t_piece, moved))


def _piece_draws(place: Place, keep: Keep, start: int, piece: Tensor) -> Tensor:
    """The draws of a piece's elements, of which the first is element `start` of the local tensor."""
    assert place.key is not None

    def unit(element: Any) -> Any:  # of int or Tensor
        return (element // place.row * place.stride + place.offset + element % place.row) // place.unit_size

    stop = start + piece.numel()
    first, last = unit(start), unit(stop - 1)
    if last - first >= 2 * CHUNK:  # a thin column of a wide matrix: its draws lie far apart
        return draws_at(place.key, keep.step, unit(torch.arange(start, stop, device=piece.device)))
    draws = draws_between(place.key, keep.step, first, last + 1, piece.device)
    if len(draws) == piece.numel():
        return draws
    return draws[unit(torch.arange(start, stop, device=piece.device)) - first]


def _pieces(t: Tensor, s: Tensor, start: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index of the first element, piece of t, piece of s), at most CHUNK elements each, in row order, any strides."""
    if t.numel() <= CHUNK:
        if t.numel():
            yield start, t, s
        return
    dim = next(d for d, size in enumerate(t.shape) if size > 1)
    length = max(CHUNK * t.shape[dim] // t.numel(), 1)
    for t_part, s_part in zip(t.split(length, dim), s.split(length, dim), strict=True):
        yield from _pieces(t_part, s_part, start)
        start += t_part.numel()
