"""Statistics of matched seeds: means, paired differences, and what they show. Functions of numbers alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

LEVEL = 0.05  # of every interval and of every family of them
POWER = 0.8
EQUAL = 1e-9  # percentage points: accuracies closer than this are the same count of images
PRIOR = 1.0  # variance of the mixture of `confidence_sequence`; within 5 % of the best width from 8 to 128 seeds

Interval = tuple[float, float]
HalfWidth = Callable[[Sequence[float], float], float]


@dataclass(frozen=True)
class Summary:
    """Mean teacher accuracy of an arm in per cent, and its 95 % interval."""

    smoothing: str
    runs: int
    mean: float
    ci95: Interval | None


@dataclass(frozen=True)
class Pair:
    """Teacher accuracy of an arm minus that of a baseline, in percentage points, over the seeds that both have.

    Attributes:
        smoothing: name of the arm.
        baseline: name of the arm it is compared with.
        mean_difference: mean over the seeds.
        ci95: its 95 % interval; None while there is none (one seed, or too few for a confidence sequence).
        p_value: None for one seed, and where every seed shows the same non-zero difference.
        seeds: that both have.
        simultaneous_ci95: holds together with those of all pairs of arms; None as `ci95`.
        equivalent: two one-sided tests, corrected for all pairs, reject a difference of the margin or more.
        detectable: the true difference that these seeds would show with 80 % power, corrected for all pairs.
    """

    smoothing: str
    baseline: str
    mean_difference: float
    ci95: Interval | None
    p_value: float | None
    seeds: tuple[int, ...]
    simultaneous_ci95: Interval | None
    equivalent: bool
    detectable: float | None

    @property
    def verdict(self) -> Literal["better", "worse", "open", "single", "unknown"]:
        """What `ci95` shows: "open" contains zero, "single" is one seed, "unknown" has no width.

        An interval has no width if the difference is equal at every seed; it shows nothing beyond these seeds.
        """
        return "single" if len(self.seeds) == 1 else _shows(self.ci95)

    @property
    def conclusion(self) -> Literal["better", "worse", "equivalent", "open"]:
        """What can be said about this pair together with all others."""
        shown = _shows(self.simultaneous_ci95)
        if shown in ("better", "worse"):
            return shown
        return "equivalent" if self.equivalent else "open"


def _shows(interval: Interval | None) -> Literal["better", "worse", "open", "unknown"]:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "open"
    if interval[1] - interval[0] < EQUAL:
        return "unknown"
    return "better" if interval[0] > 0 else "worse"


def student_t(values: Sequence[float], level: float = LEVEL) -> float:
    """Half-width of the Student-t interval of a mean, for a number of values fixed beforehand.

    Example:
        >>> round(student_t([96.0, 97.0, 98.0]), 2)
        2.48
    """
    n = len(values)
    return float(stats.t.isf(level / 2, n - 1) * _deviation(values) / math.sqrt(n))


def confidence_sequence(values: Sequence[float], level: float = LEVEL) -> float:
    """Half-width of an interval that holds at all sample sizes at once, so that sampling may stop at any look.

        P(there is an n with |mean_n - mu| > half-width_n) <= level

    By Ville's inequality, such an interval holds every m whose mixture likelihood ratio, a martingale under mu = m, is
    below 1 / level:

        B_n(m) = (1 + n g)^(-1/2) * [(1 + t^2 / (n - 1)) / (1 + t^2 / ((n - 1) (1 + n g)))]^(n / 2)

    where t is the t-statistic of m and g the variance of a normal mixture over (mu - m) / sigma; sigma is integrated
    out under its right Haar prior. Exact for independent normal values of unknown variance; conservative for heavier
    symmetric tails, but not for skewed ones.

    Args:
        values: two or more, in the order in which they came.
        level: probability that the interval ever misses the mean.

    Returns:
        The half-width; infinity while there are too few values for any bound.

    Source: Lai 1976 (Ann. Statist. 4, 265-280), with a proper normal mixture as in Wang & Ramdas 2024 (arXiv
        2310.03722); the likelihood ratio is that of Gonen et al. 2005 (Am. Stat. 59, 252-257).

    Example:
        >>> confidence_sequence([96.0, 97.0, 98.0])
        inf
        >>> values = [96.0, 97.0, 98.0, 96.5, 97.5, 97.0, 96.0, 98.0]
        >>> round(confidence_sequence(values) / student_t(values), 2)
        1.8
    """
    n = len(values)
    spread = 1 + n * PRIOR
    bound = (math.sqrt(spread) / level) ** (2 / n)
    if bound >= spread:
        return math.inf
    return _deviation(values) * math.sqrt((n - 1) / n * (bound - 1) * spread / (spread - bound))


def mixture_p_value(values: Sequence[float]) -> float:
    """Anytime-valid p-value of a zero mean, 1 / B_n(0): below `level` where `confidence_sequence` excludes zero."""
    n, mean, deviation = len(values), float(np.mean(values)), _deviation(values)
    if deviation == 0:
        return 1.0
    spread, t2 = 1 + n * PRIOR, n * (mean / deviation) ** 2
    log_ratio = n / 2 * (math.log1p(t2 / (n - 1)) - math.log1p(t2 / ((n - 1) * spread))) - math.log(spread) / 2
    return math.exp(-max(log_ratio, 0.0))


def _deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 where all values are the same count of images."""
    return 0.0 if np.ptp(values) < EQUAL else float(np.std(values, ddof=1))


def mean_interval(values: Sequence[float], half_width: HalfWidth = student_t, level: float = LEVEL) -> Interval | None:
    """The interval of a mean; None where there is none yet, and of no width where all values are equal.

    Example:
        >>> [round(end, 2) for end in mean_interval([96.0, 97.0, 98.0])]
        [94.52, 99.48]
    """
    if len(values) < 2 or math.isinf(width := half_width(values, level)):
        return None
    mean = float(np.mean(values))
    return mean - width, mean + width


def pair(
    smoothing: str,
    baseline: str,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    *,
    pairs: int = 1,
    margin: float = 1.0,
    sequential: bool = False,
) -> Pair:
    """Compare two arms over the seeds that both have.

    With a fixed number of seeds, `ci95` and `p_value` are those of the paired t-test, and a Bonferroni correction makes
    the rest hold for all pairs together. With a number that depends on what was seen, all are confidence sequences,
    and all are corrected.

    Args:
        smoothing, baseline: names of the arms.
        ours, theirs: their accuracies in per cent, by seed.
        pairs: how many pairs of arms the study can compare.
        margin: differences below it, in percentage points, count as none.
        sequential: whether the seeds were added until the intervals were narrow enough.
    """
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    values = [ours[seed] - theirs[seed] for seed in seeds]
    mean, level = float(np.mean(values)), LEVEL / pairs
    if len(values) < 2:
        return Pair(smoothing, baseline, mean, None, None, seeds, None, False, None)
    spread = _deviation(values)
    p_value: float | None
    if sequential:
        ci95 = together = one_sided = mean_interval(values, confidence_sequence, level)
        p_value = min(1.0, pairs * mixture_p_value(values))
    else:
        ci95, together, one_sided = (mean_interval(values, level=each) for each in (LEVEL, level, 2 * level))
        p_value = float(stats.ttest_1samp(values, 0.0).pvalue) if spread else 1.0
    if not spread and abs(mean) >= EQUAL:
        p_value = None
    equivalent = spread > 0 and one_sided is not None and -margin < one_sided[0] and one_sided[1] < margin
    detectable = None
    if together is not None:
        error = spread / math.sqrt(len(values))
        detectable = (together[1] - together[0]) / 2 + float(stats.t.ppf(POWER, len(values) - 1)) * error
    return Pair(smoothing, baseline, mean, ci95, p_value, seeds, together, equivalent, detectable)
