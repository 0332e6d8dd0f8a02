"""What a comparison shows, in words and cells: shared by the terminal, the report and the benchmarks."""

from collections.abc import Iterable, Sequence

import numpy as np

from spatial_ensemble.studies.comparison import Comparison
from spatial_ensemble.studies.statistics import Interval, Pair

NO_PAIR = "There are no matched runs yet, so nothing can be said about a difference."
ONE_SEED = "One seed shows nothing about a difference: run more (--seeds 3 or above)."
SHOWS = {
    "better": "lies above zero for {} (a better teacher on this data)",
    "worse": "lies below zero for {} (a worse teacher on this data)",
    "open": "contains zero for {} (no difference is shown)",
    "single": "is not known for {} (one seed)",
    "unknown": "has no width for {} (the same difference at every seed: nothing is shown beyond these seeds)",
}


def title(comparison: Comparison) -> str:
    """What was compared, in one line."""
    config, seeds = comparison.config, {run.seed for run in comparison.runs}
    labels = "" if config.images.labels is None else f", {config.images.labels} labels"
    what = f"{config.method} on {config.images.data}{labels}, {config.run.steps} steps"
    return f"{what}, {_count(len(seeds), 'seed')}: {comparison.measure}"


def findings(comparison: Comparison) -> list[str]:
    """What is shown pair by pair; what is shown for all pairs together and could have been; and what to use."""
    lines = [sentence(comparison.paired)]
    detectable = [pair.detectable for pair in comparison.paired if pair.detectable is not None]
    if detectable:
        shown = _names(pair for pair in comparison.paired if pair.conclusion in ("better", "worse"))
        equal = _names(pair for pair in comparison.paired if pair.equivalent)
        power = " to ".join(dict.fromkeys(f"{value:.1f}" for value in (min(detectable), max(detectable))))
        lines.append(
            f"Corrected for {_count(comparison.pairs, 'pair')} of arms: a difference is shown for {shown or 'none'}; "
            f"equivalent within {_points(comparison.design.margin)}: {equal or 'none'}; a true difference of {power} "
            "points would have been shown with 80 % power."
        )
    if len(comparison.summary) > 1:
        lines.append(answer(comparison))
    return lines


def sentence(paired: Sequence[Pair]) -> str:
    """What the 95 % intervals show and what they do not, pair by pair."""
    if not paired:
        return NO_PAIR
    counts = sorted({len(pair.seeds) for pair in paired})
    if counts == [1]:
        return ONE_SEED
    names = {kind: _names(pair for pair in paired if pair.verdict == kind) for kind in SHOWS}
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    if not any(names[kind] for kind in SHOWS if kind != "open"):
        return (
            f"Over {seeds} matched seeds, every 95 % interval contains zero ({names['open']}): "
            "these runs do not show that any arm is better than another."
        )
    shown = [text.format(names[kind]) for kind, text in SHOWS.items() if names[kind]]
    return f"Over {seeds} matched seeds, the 95 % interval " + ", ".join(shown) + "."


def answer(comparison: Comparison) -> str:
    """Which average to use on this data: one sentence, corrected for all pairs of arms."""
    best, beaten = comparison.best, comparison.beaten
    others = [name for name in comparison.accuracies if name not in (best, *beaten)]
    matched = [pair for name in others if (pair := comparison.pair(best, name))]
    if not beaten and all(len(pair.seeds) == 1 for pair in matched):
        return "Which average to use on this data cannot be said yet."
    equal = [pair.baseline for pair in matched if pair.conclusion == "equivalent"]
    rest = [name for name in others if name not in equal]
    worse = f"{_list(beaten)} {'is' if len(beaten) == 1 else 'are'} shown to be worse" if beaten else ""
    if rest:
        text = f"Not settled on this data: {best} has the highest mean, but {_list(rest)} may be as good or better"
    elif equal:
        which = f"which {'is' if len(equal) == 1 else 'are'} equivalent to it within"
        text = f"Use {best} on this data, or {_list(equal, 'or')}, {which} {_points(comparison.design.margin)}"
    else:
        return f"Use {best} on this data: {worse}."
    return "; ".join(filter(None, [text, worse])) + "."


def notes(comparison: Comparison) -> str:
    """How the intervals in brackets are made, and what tma-matched is."""
    about = []
    if any(pair.ci95 for pair in comparison.paired):
        kind = "95 % intervals by Student's t over the seeds, not corrected for the number of comparisons"
        if comparison.design.until is not None:
            kind = (
                "95 % confidence sequences, valid although seeds were added until they were narrow enough and for all "
                "pairs of arms together (those of a single arm: Student's t)"
            )
        about.append(f"In brackets: {kind}; those of a difference over the paired differences, in percentage points.")
    if any(entry.smoothing == "tma-matched" for entry in comparison.summary):
        about.append(
            "tma-matched is the moving average that is as fast as sts on average, of momentum 1 - (1 - p)(1 - m), and "
            "m for averaged buffers."
        )
    return " ".join(about)


def columns(comparison: Comparison) -> list[str]:
    """The heads of `rows`."""
    return ["arm", "teacher %", "student %", *(f"minus {baseline}" for baseline in comparison.baselines)]


def rows(comparison: Comparison) -> list[list[str]]:
    """One row an arm: name, teacher accuracy, student accuracy, difference to each baseline; intervals on a new line.

    Where one arm has run at fewer seeds than another, the name says how many.
    """
    paired = comparison.paired
    differences = {(pair.smoothing, pair.baseline): _cell(pair.mean_difference, pair.ci95, "+") for pair in paired}
    unequal = len({entry.runs for entry in comparison.summary}) > 1
    lines = []
    for entry in comparison.summary:
        name = entry.smoothing
        student = np.mean([run.student_accuracy for run in comparison.runs if run.smoothing == name])
        minus = [differences.get((name, baseline), "") for baseline in comparison.baselines]
        label = f"{name}\nseeds: {entry.runs}" if unequal else name
        lines.append([label, _cell(entry.mean, entry.ci95), f"{student:.2f}", *minus])
    return lines


def _cell(mean: float, ends: Interval | None, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" + ("" if ends is None else f"\n[{ends[0]:{sign}.2f}, {ends[1]:{sign}.2f}]")


def _names(pairs: Iterable[Pair]) -> str:
    return ", ".join(f"{pair.smoothing} - {pair.baseline}" for pair in pairs)


def _list(names: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _points(number: float) -> str:
    return f"{number:g} point" + ("" if number == 1 else "s")
