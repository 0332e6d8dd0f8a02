"""What a teacher consists of, computed from mask layouts, rule and step: ages, fraction replaced, distances."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from spatial_ensemble.smoothing.draw import draws_at, draws_between, threshold
from spatial_ensemble.smoothing.pairing import Pair
from spatial_ensemble.smoothing.rule import Smoothing
from spatial_ensemble.smoothing.shards import is_sharded
from spatial_ensemble.smoothing.units import MaskLayout


def ages(layouts: Mapping[str, MaskLayout], smoothing: Smoothing, step: int, update_every: int) -> dict[str, Tensor]:
    """Name -> steps since each unit last moved, int64 [] or [units]; see `Teacher.age`.

    Args:
        layouts: name -> mask layout, of tensors under the mask.
        smoothing: the rule.
        step: number of updates so far.
        update_every: every n-th of them acted.
    """
    whole = [name for name, layout in layouts.items() if layout.whole]
    keys = torch.tensor([layouts[name].key for name in whole], dtype=torch.int64, device="cpu").reshape(-1, 2)
    zero = torch.zeros(len(whole), dtype=torch.int64, device="cpu")

    def age(draws: Callable[[int], Tensor], units: int) -> Tensor:
        """Walk back from the last update until the last move of every unit is found."""
        found = torch.full((units,), step, dtype=torch.int64, device="cpu")
        waiting = torch.ones_like(found, dtype=torch.bool)
        for past in reversed(range(step)):
            if (bound := _bound(smoothing, past, update_every)) is None:
                continue
            moved = waiting & (draws(past) >= bound)
            found[moved] = step - 1 - past
            waiting &= ~moved
            if not waiting.any():
                break
        return found

    together = age(lambda past: draws_at((keys[:, 0], keys[:, 1]), past, zero), len(whole))
    found = dict(zip(whole, together, strict=True))
    for name, layout in layouts.items():
        if not layout.whole:
            found[name] = age(partial(_draws, layout), layout.units)
    return {name: found[name] for name in layouts}


def fraction_moved(layouts: Mapping[str, MaskLayout], smoothing: Smoothing, step: int, update_every: int) -> float:
    """The share of all weights under the mask that moved at the last update that acted; arguments as in `ages`."""
    last = step - step % update_every - 1
    bound = _bound(smoothing, last, update_every) if last >= 0 else None
    total = sum(layout.units * layout.unit_size for layout in layouts.values())
    if bound is None or not total:
        return 0.0
    moved = (int((_draws(layout, last) >= bound).sum()) * layout.unit_size for layout in layouts.values())
    return sum(moved) / total


def distances(pairs: Iterable[Pair]) -> dict[str, float]:
    """Name -> Euclidean distance between the two tensors of each floating pair."""
    norms = {
        pair.name: (pair.teacher.detach() - pair.student.detach().to(pair.teacher)).norm()
        for pair in pairs
        if pair.is_inexact and not pair.teacher.is_complex()
    }
    return {name: float(norm.full_tensor() if is_sharded(norm) else norm) for name, norm in norms.items()}


def _bound(smoothing: Smoothing, step: int, update_every: int) -> int | None:
    """The threshold of the draws at a step, or None if nothing moves."""
    momentum, preserve_prob = smoothing.at(step)
    if (step + 1) % update_every or momentum == 1 or preserve_prob == 1:
        return None
    return threshold(preserve_prob)


def _draws(layout: MaskLayout, step: int) -> Tensor:
    assert layout.key is not None
    return draws_between(layout.key, step, 0, layout.units)
