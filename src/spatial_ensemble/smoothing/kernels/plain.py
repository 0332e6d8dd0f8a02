"""The rule in plain torch: on every device and dtype, with the same bits as the other kernels."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from spatial_ensemble.smoothing.draw import Place, draws_at, draws_between

CHUNK = 1 << 13  # elements handled at a time: temporary memory stays below 1 MiB whatever the model
GPU_CHUNK = 1 << 20  # where each piece costs a hundred launches


class Table:
    """The rule over pairs of tensors of any kind. The other kernels' tables have the same four methods."""

    def __init__(self, triples: Sequence[tuple[Tensor, Tensor, Place]]):
        # Alike in kind one after another, so that one call moves many.
        self._triples = sorted(triples, key=lambda triple: _kind(*triple[:2]))
        self._shapes = self._read_shapes()

    def holds(self) -> bool:
        """Whether no tensor was given another shape; what else may change, each run asks the tensors anew."""
        return self._read_shapes() == self._shapes

    def nonfinite(self) -> list[Tensor]:
        """The student's tensors that hold an inf or NaN."""
        return nonfinite([s for _, s, _ in self._triples])

    def run(self, step: int, threshold: int, weight: float) -> None:
        """Smooth all pairs at a step, with a weight above 0."""
        if threshold and capturing():
            raise RuntimeError(
                "plain torch cannot be captured in a CUDA graph: each replay would preserve the same units; "
                "call update outside of the graph, or let Triton's kernel take all tensors"
            )
        whole = [triple for triple in self._triples if triple[2].whole or threshold == 0]
        replaced = _replaced([place for _, _, place in whole], step, threshold)
        moved = [(t, s) for (t, s, _), moves in zip(whole, replaced, strict=True) if moves]
        for _, alike in groupby(moved, key=lambda pair: _kind(*pair)):
            pairs = list(alike)
            _mix_([t for t, _ in pairs], [s for _, s in pairs], weight)
        if threshold:
            for t, s, place in self._triples:
                if place.whole:
                    continue
                if t.device.type == "cpu" and t.ndim and t.numel() == place.row == t.shape[0] * place.unit_size:
                    _mix_rows_(t, s, place, step, threshold, weight)
                else:
                    _mix_fragments_(t, s, place, step, threshold, weight)

    def _read_shapes(self) -> list[torch.Size]:
        return [tensor.shape for t, s, _ in self._triples for tensor in (t, s)]


def capturing() -> bool:
    """Whether a CUDA graph is being captured, in which the host's numbers are frozen."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def nonfinite(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Those that hold an inf or NaN; one wait for a GPU and dtype, however many they are."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return []
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    real = [torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor for tensor in filled]
    for tensor, norm in zip(filled, torch._foreach_norm(real, ord=torch.inf), strict=True):
        alike.setdefault((norm.device, norm.dtype), []).append((tensor, norm))
    found = []
    for pairs in alike.values():
        finite = torch.stack([norm for _, norm in pairs]).isfinite().tolist()
        found += [tensor for (tensor, _), good in zip(pairs, finite, strict=True) if not good]
    return found


def _kind(t: Tensor, s: Tensor) -> tuple[str, str, str, str]:
    return str(t.device), str(t.dtype), str(s.device), str(s.dtype)


def _replaced(places: Sequence[Place], step: int, threshold: int) -> list[bool]:
    """Which tensors, on each of which one draw decides, are not preserved."""
    keyed = [place.key for place in places if place.key is not None]
    if not (keyed and threshold):
        return [True] * len(places)
    words = torch.tensor(keyed, dtype=torch.int64, device="cpu")
    draws = draws_at((words[:, 0], words[:, 1]), step, torch.zeros_like(words[:, 0]))
    moves = iter((draws >= threshold).tolist())
    return [place.key is None or next(moves) for place in places]


def _mix_(teacher: list[Tensor], student: list[Tensor], weight: float) -> None:
    """T <- T + weight * (S - T) for tensors of one kind, rounded as `torch.lerp` rounds: `AveragedModel` to the bit."""
    if weight == 1:
        torch._foreach_copy_(teacher, student)
    elif teacher[0].dtype == student[0].dtype and teacher[0].device == student[0].device:
        torch._foreach_lerp_(teacher, student, weight)
    else:
        for t, s in zip(teacher, student, strict=True):
            for _, t_piece, s_piece in _pieces(t, s):
                t_piece.lerp_(s_piece.to(t.device, t.dtype), weight)


def _mix_rows_(t: Tensor, s: Tensor, place: Place, step: int, threshold: int, weight: float) -> None:
    """Channels on the CPU: a unit is a slice along dimension 0, and preserved ones are not touched."""
    assert place.key is not None
    first = place.offset // place.unit_size
    for start in range(0, len(t), CHUNK):
        draws = draws_between(place.key, step, first + start, first + min(start + CHUNK, len(t)), t.device)
        rows = (draws >= threshold).nonzero().flatten() + start
        if place.unit_size >= CHUNK:
            for row in rows.tolist():
                _mix_([t[row]], [s[row]], weight)
            continue
        for part in rows.split(CHUNK // place.unit_size):
            moved = s[part].to(t.device, t.dtype)
            t[part] = moved if weight == 1 else t[part].lerp_(moved, weight)


def _mix_fragments_(t: Tensor, s: Tensor, place: Place, step: int, threshold: int, weight: float) -> None:
    for start, t_piece, s_piece in _pieces(t, s):
        keep = (_piece_draws(place, step, start, t_piece) < threshold).view(t_piece.shape)
        moved = s_piece.to(t.device, t.dtype)
        if weight != 1:
            moved = t_piece.lerp(moved, weight)
        t_piece.copy_(torch.where(keep, t_piece, moved))


def _piece_draws(place: Place, step: int, start: int, piece: Tensor) -> Tensor:
    """The draws of a piece's elements, of which the first is element `start` of the local tensor."""
    assert place.key is not None

    def unit(element: Any) -> Any:  # of int or Tensor
        return (element // place.row * place.stride + place.offset + element % place.row) // place.unit_size

    stop = start + piece.numel()
    first, last = unit(start), unit(stop - 1)
    if last - first >= 2 * max(CHUNK, piece.numel()):  # a thin column of a wide matrix: its draws lie far apart
        return draws_at(place.key, step, unit(torch.arange(start, stop, device=piece.device)))
    draws = draws_between(place.key, step, first, last + 1, piece.device)
    if len(draws) == piece.numel():
        return draws
    return draws[unit(torch.arange(start, stop, device=piece.device)) - first]


def _pieces(t: Tensor, s: Tensor, start: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index of the first element, piece of t, piece of s) in row order, any strides, so many elements at most."""
    most = GPU_CHUNK if "cuda" in (t.device.type, s.device.type) else CHUNK
    if t.numel() <= most:
        if t.numel():
            yield start, t, s
        return
    dim = next(d for d, size in enumerate(t.shape) if size > 1)
    length = max(most * t.shape[dim] // t.numel(), 1)
    for t_part, s_part in zip(t.split(length, dim), s.split(length, dim), strict=True):
        yield from _pieces(t_part, s_part, start)
        start += t_part.numel()
