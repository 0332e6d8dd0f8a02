"""What one update of a teacher does: worked out once, and again when student or teacher are no longer as they were."""

import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing.draw import Place, threshold
from spatial_ensemble.smoothing.kernels import Smoother
from spatial_ensemble.smoothing.kernels.plain import capturing, nonfinite
from spatial_ensemble.smoothing.pairing import Pair, Pairing, memory
from spatial_ensemble.smoothing.shards import is_sharded, least, local


class Plan:
    """What one update does to which tensors.

    Args:
        student: it is not kept alive; when it is gone, so is what the plan holds of its memory.
        pairing: of teacher and student.
        place_of: where a pair's draws lie, None for one that is only copied.
        rule: all that `place_of` goes by; a plan holds for one.
        first: whether the teacher was not yet updated. Parameters that need no gradient are then copied.
        buffers_apart: whether averaged buffers have a momentum of their own.

    A parameter that has and needs no gradient, and is what the teacher's is, rests: the rule would change nothing, so
    nothing is done until it or the teacher's is written to, or it needs a gradient. So does a buffer that holds an inf,
    such as a mask of attention, which no average would leave as it is.
    """

    def __init__(
        self,
        student: nn.Module,
        pairing: Pairing,
        place_of: Callable[[Pair], Place | None],
        rule: object,
        *,
        first: bool,
        buffers_apart: bool,
    ):
        self._student = weakref.ref(student, partial(_release, weakref.ref(self)))
        self._pairing = pairing
        self._rule = rule
        self._buffers_apart = buffers_apart
        pairs = pairing.pairs
        still = [] if capturing() else _still(pairs)  # in a graph no value can be asked for
        equal = {pair.name for pair in still if _equal(pair)}
        self._copied_once = [pair for pair in still if first and not pair.is_buffer and pair.name not in equal]
        at_rest = equal | {pair.name for pair in self._copied_once}
        resting = [pair for pair in still if pair.name in at_rest and _is_watched(pair.student)]
        self._resting = {pair.name: (pair, _seen(pair)) for pair in resting}
        placed = [(pair, place_of(pair)) for pair in pairs if pair.name not in self._resting]
        self._moving = [(pair, where) for pair, where in placed if where is not None]
        copied = [pair for pair, where in placed if where is None]
        self._copied = [local(pair.teacher) for pair in copied], [local(pair.student) for pair in copied]
        # What is looked at for an inf or NaN, beside what moves; a mask of -inf may well rest.
        self._looked_at = [pair for pair in copied if _is_inexact(pair.student)]
        self._sharded = any(is_sharded(pair.teacher) for pair in pairs)
        self._parts: list[Tensor] = []
        self._smoothers: list[Smoother] = []  # one for all, or one for what draws preserve and one for the rest

    def holds(self, student: nn.Module, rule: object, buffers_apart: bool) -> bool:
        """Whether this is the student of the plan and the same rule, with the same tensors, of which the same rest."""
        return (
            self._student() is student
            and self._rule == rule
            and self._buffers_apart == buffers_apart
            and self._pairing.holds()
            and all(_seen(pair) == seen for pair, seen in self._resting.values())
            and all(smoother.holds() for smoother in self._smoothers)
        )

    def run(self, step: int, momentum: float, preserve_prob: float, buffer_momentum: float) -> None:
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)
        for pair in self._copied_once:
            local(pair.teacher).copy_(local(pair.student))
            if pair.name in self._resting:
                self._resting[pair.name] = pair, _seen(pair)
        self._copied_once = []
        # Last, since it drives out of the caches what the lines above share with `holds`.
        for smoother, own in zip(self._current(), (momentum, buffer_momentum), strict=False):
            smoother.run(step, threshold(preserve_prob), 1 - own)

    def _current(self) -> list[Smoother]:
        """The smoothers of this rank's tensors."""
        if not self._smoothers or self._sharded:
            triples = [(local(pair.teacher), local(pair.student), where) for pair, where in self._moving]
            parts = [part for triple in triples for part in triple[:2]]
            if not self._smoothers or any(part is not old for part, old in zip(parts, self._parts, strict=True)):
                self._parts = parts  # FSDP2 gives a sharded parameter another local tensor, as in `module.to`
                drawn = [triple for triple in triples if triple[2].key is not None]
                free = [triple for triple in triples if triple[2].key is None]
                self._smoothers = [Smoother(drawn), Smoother(free)] if self._buffers_apart else [Smoother(triples)]
        return self._smoothers

    def first_nonfinite(self) -> str | None:
        """The name of a student's tensor that holds an inf or NaN; all ranks that share its shards find the same."""
        copied = [local(pair.student) for pair in (*self._looked_at, *self._copied_once)]
        moving = [tensor for smoother in self._current() for tensor in smoother.nonfinite()]
        found = set(map(id, [*moving, *nonfinite(copied)]))
        pairs = self._pairing.pairs
        numbers = (i for i, pair in enumerate(pairs) if found and id(local(pair.student)) in found)
        first = least(next(numbers, len(pairs)), [pair.student for pair in pairs])
        return pairs[first].name if first < len(pairs) else None


def _still(pairs: list[Pair]) -> list[Pair]:
    """Those that may rest: parameters that are not trained, and buffers that hold an inf."""
    buffers = [pair for pair in pairs if pair.is_buffer and _is_inexact(pair.student)]
    infinite = set(map(id, nonfinite([local(pair.student) for pair in buffers])))
    parameters = [pair for pair in pairs if not pair.is_buffer and not _is_trained(pair.student)]
    return parameters + [pair for pair in buffers if id(local(pair.student)) in infinite]


def _is_trained(student: Tensor) -> bool:
    return student.requires_grad or student.grad is not None  # torch does not count what fused optimizers write


def _is_watched(student: Tensor) -> bool:
    """Whether torch counts what is written to a tensor: not to shards, nor to what was made in inference mode."""
    return not (is_sharded(student) or student.is_inference())


def _seen(pair: Pair) -> tuple[object, ...]:
    """What is no longer the same once a tensor at rest is trained, written to, or given other memory."""
    t, s = pair.teacher, pair.student
    return _is_trained(s), s._version, memory(s), t._version, memory(t)


def _equal(pair: Pair) -> bool:
    t, s = local(pair.teacher), local(pair.student)
    return t.equal(s.to(t.device, t.dtype))


def _is_inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _release(plan: "weakref.ref[Plan]", _: object) -> None:
    """A teacher that outlives its student does not hold on to the student's weights."""
    if (owner := plan()) is not None:
        for name in owner.__dict__.keys() - {"_student"}:
            delattr(owner, name)
