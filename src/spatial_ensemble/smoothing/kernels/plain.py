"""The rule in plain torch: any device and dtype, with the same bits as the CPU kernel."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from spatial_ensemble.smoothing.draw import draws_at, draws_between
from spatial_ensemble.smoothing.kernels.protocol import Kernel, Triple
from spatial_ensemble.smoothing.rounding import stochastic
from spatial_ensemble.smoothing.units import MaskLayout

CHUNK = 1 << 13  # elements per piece: temporary memory stays below 1 MiB for any model
GPU_CHUNK = 1 << 20  # on a GPU each piece costs a hundred launches


class PlainKernel(Kernel):
    """Takes pairs of tensors of any kind."""

    def __init__(self, triples: Sequence[Triple]):
        self._triples = sorted(triples, key=lambda triple: _kind(*triple[:2]))  # so that one call moves many

    @staticmethod
    def takes(t: Tensor, s: Tensor, layout: MaskLayout) -> bool:
        return True

    def nonfinite(self) -> list[Tensor]:
        return nonfinite([s for _, s, _ in self._triples])

    def run(self, step: int, threshold: int, weight: float) -> None:
        rounds = weight != 1 and any(layout.rounding is not None for _, _, layout in self._triples)
        if (threshold or rounds) and capturing():
            raise RuntimeError(
                "plain torch cannot be captured in a CUDA graph: each replay would repeat the same draws; "
                "call update outside of the graph, or install triton and use tensors that its kernel supports"
            )
        whole = [triple for triple in self._triples if triple[2].whole or threshold == 0]
        replaced = _replaced([layout for _, _, layout in whole], step, threshold)
        moved = [triple for triple, moves in zip(whole, replaced, strict=True) if moves]
        if rounds:
            for t, s, layout in moved:
                if layout.rounding is not None:
                    _mix_fragments_(t, s, layout, step, 0, weight)
            moved = [triple for triple in moved if triple[2].rounding is None]
        for _, alike in groupby(moved, key=lambda triple: _kind(*triple[:2])):
            pairs = list(alike)
            _mix_([t for t, _, _ in pairs], [s for _, s, _ in pairs], weight)
        if threshold:
            for t, s, layout in self._triples:
                if layout.whole:
                    continue
                slices = bool(t.ndim) and t.numel() == layout.row == t.shape[0] * layout.unit_size
                if t.device.type == "cpu" and slices and not (rounds and layout.rounding is not None):
                    _mix_rows_(t, s, layout, step, threshold, weight)
                else:
                    _mix_fragments_(t, s, layout, step, threshold, weight)


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def nonfinite(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that hold an inf or NaN; one host wait per device and dtype."""
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


def _replaced(layouts: Sequence[MaskLayout], step: int, threshold: int) -> list[bool]:
    """Which tensors are not preserved, where one draw decides for each."""
    keyed = [layout.key for layout in layouts if layout.key is not None]
    if not (keyed and threshold):
        return [True] * len(layouts)
    words = torch.tensor(keyed, dtype=torch.int64, device="cpu")
    draws = draws_at((words[:, 0], words[:, 1]), step, torch.zeros_like(words[:, 0]))
    moves = iter((draws >= threshold).tolist())
    return [layout.key is None or next(moves) for layout in layouts]


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


def _mix_rows_(t: Tensor, s: Tensor, layout: MaskLayout, step: int, threshold: int, weight: float) -> None:
    """Channels on the CPU: a unit is a slice along dimension 0; preserved ones are not touched."""
    assert layout.key is not None
    first = layout.offset // layout.unit_size
    for start in range(0, len(t), CHUNK):
        draws = draws_between(layout.key, step, first + start, first + min(start + CHUNK, len(t)), t.device)
        rows = (draws >= threshold).nonzero().flatten() + start
        if layout.unit_size >= CHUNK:
            for row in rows.tolist():
                _mix_([t[row]], [s[row]], weight)
            continue
        for part in rows.split(CHUNK // layout.unit_size):
            moved = s[part].to(t.device, t.dtype)
            t[part] = moved if weight == 1 else t[part].lerp_(moved, weight)


def _mix_fragments_(t: Tensor, s: Tensor, layout: MaskLayout, step: int, threshold: int, weight: float) -> None:
    for start, t_piece, s_piece in _pieces(t, s):
        moved = s_piece.to(t.device, t.dtype)
        if weight != 1 and layout.rounding is not None:
            draws = _piece_draws(layout._replace(key=layout.rounding, unit_size=1), step, start, t_piece)
            moved = stochastic(t_piece.float().lerp(moved.float(), weight), draws, t.dtype)
        elif weight != 1:
            moved = t_piece.lerp(moved, weight)
        if threshold:
            moved = torch.where(_piece_draws(layout, step, start, t_piece) < threshold, t_piece, moved)
        t_piece.copy_(moved)


def _piece_draws(layout: MaskLayout, step: int, start: int, piece: Tensor) -> Tensor:
    """The draws of a piece's elements, in its shape; its first is element `start` of the local tensor."""
    assert layout.key is not None

    def unit(element: Any) -> Any:  # of int or Tensor
        return (element // layout.row * layout.stride + layout.offset + element % layout.row) // layout.unit_size

    stop = start + piece.numel()
    first, last = unit(start), unit(stop - 1)
    if last - first >= 2 * max(CHUNK, piece.numel()):  # a narrow column of a wide matrix: its draws are far apart
        return draws_at(layout.key, step, unit(torch.arange(start, stop, device=piece.device))).view(piece.shape)
    draws = draws_between(layout.key, step, first, last + 1, piece.device)
    if len(draws) != piece.numel():
        draws = draws[unit(torch.arange(start, stop, device=piece.device)) - first]
    return draws.view(piece.shape)


def _pieces(t: Tensor, s: Tensor, start: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index of the first element, piece of t, piece of s) in row-major order, for any strides."""
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
