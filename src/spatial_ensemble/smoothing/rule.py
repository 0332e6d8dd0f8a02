"""The rule: one formula; the moving average, Spatial Ensemble and their combination are three settings of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Smoothing:
    """How a teacher follows its student.

        T <- K * T + (1 - K) * (m * T + (1 - m) * S),    K ~ Bernoulli(p), one draw per unit and step

    Args:
        momentum: m in [0, 1], or a schedule step -> m. 0 replaces by the student, 1 changes nothing.
        preserve_prob: p in [0, 1], or a schedule step -> p. 0 preserves nothing: the moving average.
        buffer_momentum: momentum of averaged buffers (`Teacher(buffers="average")`), which no draw preserves; None: m.

    Raises:
        ValueError: a value is not a number in [0, 1]; for a schedule, at the step where it leaves [0, 1].

    Source: Huang et al. 2021 (arXiv 2110.01253), equations for SE and STS.

    Example:
        >>> Smoothing(momentum=0.99, preserve_prob=0.7).at(step=0)
        (0.99, 0.7)
    """

    momentum: float | Schedule
    preserve_prob: float | Schedule = 0.0
    buffer_momentum: float | Schedule | None = None

    def __post_init__(self) -> None:
        for name in ("momentum", "preserve_prob", "buffer_momentum"):
            value = getattr(self, name)
            if not (callable(value) or (name == "buffer_momentum" and value is None)):
                _probability(name, value)

    def at(self, step: int) -> tuple[float, float]:
        """(momentum, preserve_prob) at a step, counted from 0."""
        return _value("momentum", self.momentum, step), _value("preserve_prob", self.preserve_prob, step)

    def buffer_momentum_at(self, step: int) -> float:
        """The momentum of averaged buffers at a step, counted from 0."""
        own = self.momentum if self.buffer_momentum is None else self.buffer_momentum
        return _value("buffer_momentum", own, step)

    def half_life(self, step: int = 0) -> float:
        """Updates after which a student's expected weight in the teacher has halved, at the settings of one step.

        h = log(1/2) / log(1 - (1 - p)(1 - m)); 0 for a plain copy, inf for a teacher that never changes.

        Example:
            >>> round(temporal_moving_average(0.9999).half_life())
            6931
            >>> round(spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7).half_life())
            231
        """
        momentum, preserve_prob = self.at(step)
        rate = (1 - preserve_prob) * (1 - momentum)
        if rate in (0.0, 1.0):
            return 0.0 if rate else math.inf
        return -math.log(2) / math.log1p(-rate)

    def matched(self) -> "Smoothing":
        """The moving average of the same expected update rate (1 - p)(1 - m); averaged buffers keep their momentum.

        A gain over another moving average may come from the update rate alone; a gain over this one does not.

        Example:
            >>> Smoothing(momentum=0.99, preserve_prob=0.5).matched()
            Smoothing(momentum=0.995, preserve_prob=0.0, buffer_momentum=0.99)
        """
        buffers = self.momentum if self.buffer_momentum is None else self.buffer_momentum
        if callable(self.momentum) or callable(self.preserve_prob):
            return Smoothing(partial(_matched_momentum, self), buffer_momentum=buffers)
        return Smoothing(_matched_momentum(self, 0), buffer_momentum=buffers)

    def every(self) -> tuple[int, "Smoothing"]:
        """The moving average of the same expected update rate that acts at every n-th update alone, and this n.

            n = round(1 / (1 - p)),    m_n = max(0, 1 - n (1 - p) (1 - m)),    m_b^n for averaged buffers

        For `Teacher(..., update_every=n)`. Like this rule it moves about 1 - p of the memory that a moving average
        does, but without randomness.

        Raises:
            ValueError: p is a schedule, or 1.

        Example:
            >>> Smoothing(momentum=0.75, preserve_prob=0.5).every()
            (2, Smoothing(momentum=0.75, preserve_prob=0.0, buffer_momentum=0.5625))
        """
        p = self.preserve_prob
        if callable(p) or p == 1:
            raise ValueError(f"preserve_prob must be a number below 1 for an average at every n-th update, got {p!r}")
        n = round(1 / (1 - p))
        buffers = self.momentum if self.buffer_momentum is None else self.buffer_momentum
        momentum: float | Schedule = partial(_every_momentum, self.momentum, n * (1 - p))
        power: float | Schedule = partial(_power, buffers, n)
        if not callable(self.momentum):
            momentum = _every_momentum(self.momentum, n * (1 - p), 0)
        if not callable(buffers):
            power = _power(buffers, n, 0)
        return n, Smoothing(momentum, buffer_momentum=power)


def temporal_moving_average(momentum: float | Schedule) -> Smoothing:
    """TMA, the usual EMA: T <- m T + (1 - m) S at every step.

    Example:
        >>> temporal_moving_average(0.999)
        Smoothing(momentum=0.999, preserve_prob=0.0, buffer_momentum=None)
    """
    return Smoothing(momentum, 0.0)


def spatial_ensemble(preserve_prob: float | Schedule) -> Smoothing:
    """SE: a unit is preserved with probability p and otherwise replaced by the student's.

    A unit's age, in steps since it was replaced, is geometric with mean p / (1 - p).

    Example:
        >>> spatial_ensemble(0.7)
        Smoothing(momentum=0.0, preserve_prob=0.7, buffer_momentum=None)
    """
    return Smoothing(0.0, preserve_prob)


def spatial_temporal_smoothing(momentum: float | Schedule, preserve_prob: float | Schedule) -> Smoothing:
    """STS: a unit is preserved with probability p and otherwise averaged.

    Example:
        >>> spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7)
        Smoothing(momentum=0.99, preserve_prob=0.7, buffer_momentum=None)
    """
    return Smoothing(momentum, preserve_prob)


def _matched_momentum(smoothing: Smoothing, step: int) -> float:
    momentum, preserve_prob = smoothing.at(step)
    return 1 - (1 - preserve_prob) * (1 - momentum)


def _every_momentum(momentum: float | Schedule, factor: float, step: int) -> float:
    return max(0.0, 1 - factor * (1 - _value("momentum", momentum, step)))


def _power(momentum: float | Schedule, n: int, step: int) -> float:
    return _value("buffer_momentum", momentum, step) ** n


def _value(name: str, value: float | Schedule, step: int) -> float:
    return _probability(name, value(step), f" at step {step}") if callable(value) else float(value)


def _probability(name: str, value: object, where: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}{where}")
    return float(value)
