"""What a teacher is made of: ages of its units, fraction replaced, distance to the student."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing.draw import Place, draws_at, draws_between, threshold
from spatial_ensemble.smoothing.pairing import Pairing
from spatial_ensemble.smoothing.shards import is_sharded

if TYPE_CHECKING:
    from spatial_ensemble.smoothing.teacher import Teacher


def ages(teacher: Teacher) -> dict[str, Tensor]:
    """Canonical name -> steps since each unit last moved, int64 [] or [units]; see `Teacher.age`."""
    places = teacher.places()
    finer = {name: where for name, where in places.items() if not where.whole}
    whole = [name for name, where in places.items() if where.whole]
    keys = torch.tensor([places[name].key for name in whole], dtype=torch.int64, device="cpu").reshape(-1, 2)
    zero = torch.zeros(len(whole), dtype=torch.int64, device="cpu")
    found = dict(
        zip(whole, _ages(teacher, lambda step: draws_at((keys[:, 0], keys[:, 1]), step, zero), len(whole)), strict=True)
    )
    for name, where in finer.items():
        found[name] = _ages(teacher, partial(_draws, where), where.units)
    return {name: found[name] for name in places}


def fraction_replaced(teacher: Teacher) -> float:
    """The share of all weights under the mask that moved at the last update that acted; 1 - p on average.

    Example:
        >>> from spatial_ensemble import Teacher, spatial_ensemble
        >>> student = nn.Linear(4, 2)
        >>> teacher = Teacher(student, spatial_ensemble(preserve_prob=0.0))
        >>> teacher.update(student)
        >>> fraction_replaced(teacher)
        1.0
    """
    places = teacher.places().values()
    total = sum(where.units * where.unit_size for where in places)
    last = teacher.step - teacher.step % teacher.update_every - 1  # the last that acted
    momentum, preserve_prob = teacher.smoothing.at(last) if last >= 0 else (1.0, 1.0)
    if not total or momentum == 1 or preserve_prob == 1:
        return 0.0
    bound = threshold(preserve_prob)
    return sum(int((_draws(where, last) >= bound).sum()) * where.unit_size for where in places) / total


def distance(teacher: Teacher, student: nn.Module) -> dict[str, float]:
    """Canonical name -> Euclidean distance between a teacher's floating tensor and the student's.

    For sharded tensors it is the distance of the whole ones, and all their ranks must ask for it.

    Example:
        >>> from spatial_ensemble import Teacher, spatial_ensemble
        >>> student = nn.Linear(4, 2)
        >>> distance(Teacher(student, spatial_ensemble(0.5)), student)
        {'bias': 0.0, 'weight': 0.0}
    """
    pairs = [pair for pair in Pairing(teacher.module, student).pairs if pair.teacher.is_floating_point()]
    norms = {pair.name: (pair.teacher.detach() - pair.student.detach().to(pair.teacher)).norm() for pair in pairs}
    return {name: float(norm.full_tensor() if is_sharded(norm) else norm) for name, norm in norms.items()}


def _draws(where: Place, step: int) -> Tensor:
    assert where.key is not None
    return draws_between(where.key, step, 0, where.units)


def _ages(teacher: Teacher, draws: Callable[[int], Tensor], units: int) -> Tensor:
    """Walk back from the last update until every unit's last move is found."""
    age = torch.full((units,), teacher.step, dtype=torch.int64, device="cpu")
    waiting = torch.ones_like(age, dtype=torch.bool)
    for step in reversed(range(teacher.step)):
        momentum, preserve_prob = teacher.smoothing.at(step)
        if (step + 1) % teacher.update_every or momentum == 1 or preserve_prob == 1:
            continue
        moved = waiting & (draws(step) >= threshold(preserve_prob))
        age[moved] = teacher.step - 1 - step
        waiting &= ~moved
        if not waiting.any():
            break
    return age
