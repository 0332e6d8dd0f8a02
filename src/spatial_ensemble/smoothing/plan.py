"""What one update of a teacher does: worked out once, and again when student or teacher are no longer as they were."""

import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing.draw import Place, threshold
from spatial_ensemble.smoothing.kernels import Smoother
from spatial_ensemble.smoothing.kernels.plain import nonfinite
from spatial_ensemble.smoothing.pairing import Pair, Pairing
from spatial_ensemble.smoothing.shards import is_sharded, least, local


class Plan:
    """What one update does to which tensors.

    Args:
        student: it is not kept alive; when it is gone, so is what the plan holds of its memory.
        pairing: of teacher and student.
        place_of: where a pair's draws lie, None for one that is only copied.
        seed: of these draws.
        frozen: whether parameters that need no gradient are copied once, and then left.
        buffers_apart: whether averaged buffers have a momentum of their own.

    Attributes:
        moving: the pairs that the rule moves, and where their draws lie.
        places: canonical name -> place, of those that may be preserved.
    """

    def __init__(
        self,
        student: nn.Module,
        pairing: Pairing,
        place_of: Callable[[Pair], Place | None],
        seed: int,
        frozen: bool = True,
        buffers_apart: bool = False,
    ):
        self._student = weakref.ref(student, partial(_release, weakref.ref(self)))
        self.seed = seed
        self._pairing = pairing
        self._parameters = [pair.student for pair in pairing.pairs if not pair.is_buffer]
        self._trained = [parameter.requires_grad for parameter in self._parameters]
        pairs = [pair for pair in pairing.pairs if pair.is_buffer or pair.student.requires_grad or not frozen]
        placed = [(pair, place_of(pair)) for pair in pairs]
        self.moving = [(pair, where) for pair, where in placed if where is not None]
        self.places = {pair.name: where for pair, where in self.moving if where.key is not None}
        copied = [pair for pair, where in placed if where is None and pair.is_buffer]
        self._copied = [local(pair.teacher) for pair in copied], [local(pair.student) for pair in copied]
        # Copied at the next update alone: an average of what no longer moves comes to the same values in the end.
        self._frozen = [
            pair for pair in pairing.pairs if frozen and not pair.is_buffer and not pair.student.requires_grad
        ]
        self._taken = [pair for pair, _ in self.moving] + [pair for pair in copied if pair.student.is_floating_point()]
        self._sharded = any(is_sharded(pair.teacher) for pair in pairs)
        self._parts: list[Tensor] = []
        self._buffers_apart = buffers_apart
        self._smoothers: list[Smoother] = []  # one for all, or one for what draws preserve and one for the rest

    def holds(self, student: nn.Module, seed: int, buffers_apart: bool) -> bool:
        """Whether this is the student of the plan, with the same tensors, of which the same are trained."""
        return (
            self._student() is student
            and self.seed == seed
            and self._buffers_apart == buffers_apart
            and self._pairing.holds()
            and [parameter.requires_grad for parameter in self._parameters] == self._trained
            and all(smoother.holds() for smoother in self._smoothers)
        )

    def run(self, step: int, momentum: float, preserve_prob: float, buffer_momentum: float, copy_buffers: bool) -> None:
        if copy_buffers and self._copied[0]:
            torch._foreach_copy_(*self._copied)
        for pair in self._frozen:
            local(pair.teacher).copy_(local(pair.student))
        self._frozen = []
        # Last, since it drives out of the caches what the lines above share with `holds`.
        for smoother, own in zip(self._current(), (momentum, buffer_momentum), strict=False):
            smoother.run(step, threshold(preserve_prob), 1 - own)

    def _current(self) -> list[Smoother]:
        """The smoothers of this rank's tensors."""
        if not self._smoothers or self._sharded:
            triples = [(local(pair.teacher), local(pair.student), where) for pair, where in self.moving]
            parts = [part for triple in triples for part in triple[:2]]
            if not self._smoothers or any(part is not old for part, old in zip(parts, self._parts, strict=True)):
                self._parts = parts  # FSDP2 gives a sharded parameter another local tensor, as in `module.to`
                drawn = [triple for triple in triples if triple[2].key is not None]
                free = [triple for triple in triples if triple[2].key is None]
                self._smoothers = [Smoother(drawn), Smoother(free)] if self._buffers_apart else [Smoother(triples)]
        return self._smoothers

    def first_nonfinite(self) -> str | None:
        """The name of a student's tensor that holds an inf or NaN; all ranks that share its shards find the same."""
        copied = [local(pair.student) for pair in self._taken[len(self.moving) :]]
        moving = [tensor for smoother in self._current() for tensor in smoother.nonfinite()]
        found = set(map(id, [*moving, *nonfinite(copied)]))
        numbers = (i for i, pair in enumerate(self._taken) if found and id(local(pair.student)) in found)
        first = least(next(numbers, len(self._taken)), [pair.student for pair in self._taken])
        return self._taken[first].name if first < len(self._taken) else None


def _release(plan: "weakref.ref[Plan]", _: object) -> None:
    """A teacher that outlives its student does not hold on to the student's weights."""
    if (owner := plan()) is not None:
        for name in owner.__dict__.keys() - {"seed", "places", "_student"}:
            delattr(owner, name)
