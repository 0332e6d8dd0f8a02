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


def _positive(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
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
