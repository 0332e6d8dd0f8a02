"""What matched seeds show about the smoothings: means, paired differences, and a sentence that claims no more.

Every interval is a Student-t interval, and every p value that of the paired t-test, two-sided, not corrected for the
number of comparisons.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

BASELINES = ("tma", "tma-matched")
EQUAL = 1e-9  # per cent points: accuracies closer than this are the same count of images


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> list[float] | None:
    """The t interval of a mean; None for one value, and of no width where all values are equal.

    Example:
        >>> [round(end, 2) for end in mean_interval([96.0, 97.0, 98.0])]
        [94.52, 99.48]
    """
    if len(values) < 2:
        return None
    if np.ptp(values) < EQUAL:
        return [float(np.mean(values))] * 2
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    return [float(interval.low), float(interval.high)]


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean teacher accuracy of each smoothing (per cent) and its 95 % interval, in order of first appearance."""
    summary = []
    for smoothing in dict.fromkeys(run["smoothing"] for run in runs):
        values = list(by_seed(runs, smoothing).values())
        mean = float(np.mean(values))
        summary.append({"smoothing": smoothing, "runs": len(values), "mean": mean, "ci95": mean_interval(values)})
    return summary


def paired_differences(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Smoothing minus baseline, teacher accuracy in per cent points, over the seeds that both have.

    Each pair appears once: `tma` is the baseline of all others, `tma-matched` that of all others but `tma`.

    Returns:
        One entry a pair. `ci95` and `p_value` are None for one seed; `p_value` is also None where every seed shows the
        same non-zero difference, because the t-test has no spread to measure it against.
    """
    smoothings = list(dict.fromkeys(run["smoothing"] for run in runs))
    paired = []
    for i, baseline in enumerate(BASELINES):
        reference = by_seed(runs, baseline)
        for smoothing in (name for name in smoothings if name not in BASELINES[: i + 1]):
            values = by_seed(runs, smoothing)
            seeds = sorted(values.keys() & reference.keys())
            if seeds:
                ours, theirs = [values[seed] for seed in seeds], [reference[seed] for seed in seeds]
                paired.append(
                    {"smoothing": smoothing, "baseline": baseline, **_paired_test(ours, theirs), "seeds": seeds}
                )
    return paired


def _paired_test(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    differences = np.subtract(ours, theirs)
    mean = float(differences.mean())
    if len(differences) < 2:
        return {"mean_difference": mean, "ci95": None, "p_value": None}
    if np.ptp(differences) < EQUAL:
        return {"mean_difference": mean, "ci95": [mean, mean], "p_value": 1.0 if abs(mean) < EQUAL else None}
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    return {
        "mean_difference": mean,
        "ci95": [float(interval.low), float(interval.high)],
        "p_value": float(test.pvalue),
    }


def by_seed(runs: Sequence[dict[str, Any]], smoothing: str) -> dict[int, float]:
    """Teacher accuracy (per cent) of one smoothing, by seed."""
    return {run["seed"]: run["teacher_accuracy"] for run in runs if run["smoothing"] == smoothing}


def verdict(pair: dict[str, Any]) -> str:
    """What one paired difference shows: "better", "worse", "open" (its interval contains zero), "single" or "unknown".

    Single is one seed. Unknown is a difference that is equal at every seed: its interval has no width and shows nothing
    beyond these seeds.
    """
    if pair["ci95"] is None:
        return "single"
    low, high = pair["ci95"]
    if low <= 0 <= high:
        return "open"
    if high - low < EQUAL:
        return "unknown"
    return "better" if low > 0 else "worse"


def sentence(paired: Sequence[dict[str, Any]]) -> str:
    """What the intervals show and what they do not, in plain words.

    Example:
        >>> pair = {"smoothing": "sts", "baseline": "tma", "ci95": [-0.5, 2.5], "seeds": [0, 1, 2]}
        >>> print(sentence([pair]).split(": ")[0])
        Over 3 matched seeds, every 95 % interval contains zero (sts - tma)
    """
    if not paired:
        return "There is no matched pair of runs yet, so nothing can be said about a difference."
    counts = sorted({len(pair["seeds"]) for pair in paired})
    if counts == [1]:
        return "One seed shows nothing about a difference between the smoothings: run more (--seeds 3 or above)."
    names = {kind: _names(paired, kind) for kind in _SHOWS}
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    if not any(names[kind] for kind in _SHOWS if kind != "open"):
        return (
            f"Over {seeds} matched seeds, every 95 % interval contains zero ({names['open']}): "
            "these runs do not show that any smoothing is better than another."
        )
    shown = [text.format(names[kind]) for kind, text in _SHOWS.items() if names[kind]]
    return f"Over {seeds} matched seeds, the 95 % interval " + ", ".join(shown) + "."


_SHOWS = {
    "better": "lies above zero for {} (a better teacher on this data)",
    "worse": "lies below zero for {} (a worse teacher on this data)",
    "open": "contains zero for {} (no difference is shown)",
    "single": "is not known for {} (one seed)",
    "unknown": "has no width for {} (the same difference at every seed: nothing is shown beyond these seeds)",
}


def _names(paired: Sequence[dict[str, Any]], kind: str) -> str:
    return ", ".join(f"{pair['smoothing']} - {pair['baseline']}" for pair in paired if verdict(pair) == kind)
