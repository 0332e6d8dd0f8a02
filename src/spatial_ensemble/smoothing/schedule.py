"""Schedules for momentum and preserve_prob: plain callables step -> float. Steps count from 0."""

import math
from functools import partial

from spatial_ensemble.smoothing.rule import Schedule


def constant(value: float) -> Schedule:
    """The same value at every step.

    Example:
        >>> constant(0.99)(1000)
        0.99
    """
    return partial(_constant, value)


def linear(start: float, end: float, steps: int) -> Schedule:
    """Linear from `start` at step 0 to `end` at step `steps`, then constant.

    Example:
        >>> linear(0.0, 0.5, steps=10)(5)
        0.25
    """
    return partial(_linear, start, end, _positive(steps))


def cosine(start: float, end: float, steps: int) -> Schedule:
    """The paper's and BYOL's schedule: end - (end - start) (1 + cos(pi k / K)) / 2 up to step K, then `end`.

    With start = m0 and end = 1 this is 1 - (1 - m0)(1 + cos(pi k / K)) / 2 (Grill et al. 2020, section 3.2).

    Example:
        >>> momentum = cosine(0.99, 1.0, steps=100)
        >>> momentum(0), round(momentum(50), 4), momentum(100)
        (0.99, 0.995, 1.0)
    """
    return partial(_cosine, start, end, _positive(steps))


def warmup(value: float, steps: int = 10) -> Schedule:
    """min(value, (1 + k) / (steps + k)): a short memory at first, so that the early teacher is not stale.

    The ramp passes one half at about k = `steps`. Source: `num_updates` of tf.train.ExponentialMovingAverage, which is
    (1 + k) / (10 + k).

    Example:
        >>> momentum = warmup(0.999)
        >>> momentum(0), momentum(90), momentum(10**6)
        (0.1, 0.91, 0.999)
    """
    return partial(_warmup, value, _positive(steps))


def power(gamma: float, update_every: int = 1) -> Schedule:
    """m = (1 - n/t)^(gamma + 1) with t = k + 1 and n = `update_every`: a power average, whose memory grows with t.

    Student i of t weighs (i^(gamma+1) - (i-1)^(gamma+1)) / t^(gamma+1): gamma = 0 is the mean of all students. The
    first update copies. Source: Karras et al. 2024 (arXiv 2312.02696), section 3.1.

    Args:
        gamma: above -1; larger is a shorter memory, about t / (gamma + 2) steps on average.
        update_every: n of `Teacher(update_every=n)`; one update then takes n steps at a time.

    Example:
        >>> momentum = power(1.0)
        >>> momentum(0), momentum(1), momentum(9)
        (0.0, 0.25, 0.81)
    """
    if not gamma > -1:
        raise ValueError(f"gamma must be above -1, got {gamma}")
    return partial(_power, gamma, _positive(update_every, "update_every"))


def half_life(steps: float, update_every: int = 1) -> Schedule:
    """m = 2^(-n / steps) with n = `update_every`: after `steps` steps a student's weight in the average has halved.

    Args:
        steps: half-life in calls of `update`, above 0. For one in images, divide it by the batch size.
        update_every: n of `Teacher(update_every=n)`; one update then takes n steps at a time.

    Example:
        >>> round(half_life(6931)(0), 6)
        0.9999
    """
    if not steps > 0:
        raise ValueError(f"steps must be above 0, got {steps}")
    return constant(2 ** (-_positive(update_every, "update_every") / steps))


def delayed(start: int, schedule: float | Schedule) -> Schedule:
    """0 before step `start`, then `schedule(k - start)`: as a momentum, the teacher copies the student until then.

    Example:
        >>> momentum = delayed(1000, 0.999)
        >>> momentum(999), momentum(1000)
        (0.0, 0.999)
    """
    if start < 0:
        raise ValueError(f"start must be at least 0, got {start}")
    return partial(_delayed, start, schedule if callable(schedule) else constant(schedule))


def _positive(steps: int, name: str = "steps") -> int:
    if steps < 1:
        raise ValueError(f"{name} must be at least 1, got {steps}")
    return steps


# Module-level functions under functools.partial, so that a schedule can be pickled to worker processes.
def _constant(value: float, step: int) -> float:
    return value


def _linear(start: float, end: float, steps: int, step: int) -> float:
    return end if step >= steps else start + (end - start) * step / steps


def _cosine(start: float, end: float, steps: int, step: int) -> float:
    return end if step >= steps else end - (end - start) * (1 + math.cos(math.pi * step / steps)) / 2


def _warmup(value: float, steps: int, step: int) -> float:
    return min(value, (1 + step) / (steps + step))


def _power(gamma: float, update_every: int, step: int) -> float:
    return float(max(0.0, 1 - update_every / (step + 1)) ** (gamma + 1))


def _delayed(start: int, schedule: Schedule, step: int) -> float:
    return schedule(step - start) if step >= start else 0.0
