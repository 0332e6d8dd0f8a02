"""The statistics against the formulas written out and by simulation, and the sentences against what they may claim."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from synthetic import comparison_of

from spatial_ensemble.errors import UserError
from spatial_ensemble.studies import statistics
from spatial_ensemble.studies.comparison import Comparison, Design
from spatial_ensemble.studies.statistics import (
    HalfWidth,
    Pair,
    confidence_sequence,
    mean_interval,
    mixture_p_value,
    student_t,
)
from spatial_ensemble.studies.wording import answer, findings, sentence

UNTIL = Design(until=1.0)


def t_interval(values: list[float], level: float = 0.05) -> tuple[float, float]:
    n, mean = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = stats.t.ppf(1 - level / 2, n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half


def pair_with(arm: str, interval: tuple[float, float]) -> Pair:
    return Pair(arm, "tma", sum(interval) / 2, interval, 0.5, (0, 1, 2), None, False, 1.0)


def test_mean_and_interval_follow_the_t_formula() -> None:
    values = [96.1, 97.5, 95.0, 96.6]
    (entry,) = comparison_of(sts=values).summary
    assert entry.runs == 4 and entry.mean == pytest.approx(sum(values) / 4)
    assert entry.ci95 == pytest.approx(t_interval(values))


def test_paired_difference_follows_the_t_formula() -> None:
    (pair,) = comparison_of(tma=[95.0, 97.0, 90.0], sts=[96.0, 97.5, 92.5]).paired
    differences = [1.0, 0.5, 2.5]
    assert pair.mean_difference == pytest.approx(4 / 3)
    assert pair.ci95 == pytest.approx(t_interval(differences))
    low, high = t_interval(differences)
    t_value = (4 / 3) / ((high - low) / 2 / stats.t.ppf(0.975, 2))
    assert pair.p_value == pytest.approx(2 * stats.t.sf(t_value, 2))
    assert pair.seeds == (0, 1, 2)


def test_simultaneous_intervals_are_corrected_for_all_pairs_of_arms() -> None:
    tma, sts = [95.0, 97.0, 90.0, 94.0], [96.0, 97.5, 92.5, 95.5]
    comparison = comparison_of(tma=tma, tma_matched=tma, se=tma, sts=sts)
    pair = comparison.pair("sts", "tma")
    assert comparison.pairs == 6 and pair is not None
    differences = [ours - theirs for ours, theirs in zip(sts, tma, strict=True)]
    assert pair.simultaneous_ci95 == pytest.approx(t_interval(differences, 0.05 / 6))


def test_only_matched_seeds_enter_a_difference() -> None:
    (pair,) = comparison_of(tma=[90.0, 91.0, 92.0], sts=[91.0, 93.0]).paired
    assert pair.seeds == (0, 1) and pair.mean_difference == pytest.approx(1.5)


def test_each_pair_appears_once_and_in_order() -> None:
    comparison = comparison_of(tma=[90.0, 91.0], tma_matched=[90.5, 91.0], se=[92.0, 91.0], sts=[93.0, 94.0])
    assert [(pair.smoothing, pair.baseline) for pair in comparison.paired] == [
        ("tma-matched", "tma"),
        ("se", "tma"),
        ("sts", "tma"),
        ("se", "tma-matched"),
        ("sts", "tma-matched"),
    ]


def test_named_arms_are_compared_with_the_best_arm_too() -> None:
    comparison = comparison_of(tma=[90.0, 91.0], fast=[95.0, 96.5], slow=[80.0, 82.0])
    assert [(pair.smoothing, pair.baseline) for pair in comparison.paired] == [
        ("fast", "tma"),
        ("slow", "tma"),
        ("slow", "fast"),
    ]
    alone = comparison_of(fast=[90.0, 91.0], slow=[80.0, 82.0], slower=[70.0, 71.0])  # the first is the reference
    assert {pair.baseline for pair in alone.paired} == {"fast"}


def test_one_seed_has_no_interval_and_says_so() -> None:
    comparison = comparison_of(tma=[90.0], sts=[99.0])
    (pair,) = comparison.paired
    assert (pair.ci95, pair.p_value, pair.simultaneous_ci95, pair.detectable) == (None, None, None, None)
    assert pair.mean_difference == pytest.approx(9.0)
    assert all(entry.ci95 is None for entry in comparison.summary)
    assert "One seed shows nothing" in sentence([pair]) and "cannot be said" in answer(comparison)


@pytest.mark.parametrize(("gain", "p_value"), [(0.0, 1.0), (0.3, None)])
@pytest.mark.parametrize("design", [Design(), UNTIL])
def test_equal_differences_have_no_spread_no_warning_and_no_claim(
    gain: float, p_value: float | None, design: Design
) -> None:
    values = [97.1, 96.2, 95.7, 95.0, 93.0, 92.0, 97.0, 91.0]
    comparison = comparison_of(tma=values, sts=[value + gain for value in values], design=design)
    (pair,) = comparison.paired
    assert pair.ci95 == pytest.approx((gain, gain)) and pair.p_value == p_value
    assert pair.conclusion == "open" and not pair.equivalent
    assert "a better teacher" not in sentence([pair]) and "Use" not in answer(comparison)


def test_equal_accuracies_have_an_interval_without_width() -> None:
    assert mean_interval([10.0, 10.0, 10.0]) == (10.0, 10.0)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.1, 1.0), "better"), ((-1.0, -0.1), "worse"), ((-0.1, 1.0), "open"), ((0.0, 1.0), "open")],
)
def test_verdict(interval: tuple[float, float], expected: str) -> None:
    assert pair_with("sts", interval).verdict == expected


def test_sentence_separates_what_is_shown_from_what_is_not() -> None:
    text = sentence(
        [pair_with("se", (0.2, 1.0)), pair_with("sts", (-0.2, 1.0)), pair_with("tma-matched", (-3.0, -1.0))]
    )
    assert text == (
        "Over 3 matched seeds, the 95 % interval lies above zero for se - tma (a better teacher on this data), "
        "lies below zero for tma-matched - tma (a worse teacher on this data), "
        "contains zero for sts - tma (no difference is shown)."
    )
    nothing = sentence([pair_with("se", (-1, 1)), pair_with("sts", (0, 1))])
    assert "every 95 % interval contains zero (se - tma, sts - tma)" in nothing and "do not show" in nothing
    assert "no matched runs" in sentence([])


def test_pairs_of_fewer_seeds_are_not_counted_among_those_of_more() -> None:
    text = sentence(comparison_of(tma=[90.0, 91.0, 92.0], sts=[90.5, 90.5, 93.0], se=[95.0]).paired)
    assert text.startswith("Over 1 to 3 matched seeds, the 95 % interval contains zero for sts - tma")
    assert text.endswith("is not known for se - tma (one seed).")


# Which average to use: a spread over the seeds that all arms share, and small noise of each arm's own.
SHARED = np.random.default_rng(0).normal(90, 3, 12)
NOISE = np.random.default_rng(1).normal(0, 0.3, (3, 12))
NOISE -= NOISE.mean(1, keepdims=True)


@pytest.mark.parametrize("design", [Design(), UNTIL])
@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((0.0, 4.0, 2.0), "Use se on this data: tma and sts are shown to be worse."),
        (
            (0.0, 4.0, 4.05),
            "Use sts on this data, or se, which is equivalent to it within 1 point; tma is shown to be worse.",
        ),
        ((0.0, 0.05, 0.1), "Use sts on this data, or tma or se, which are equivalent to it within 1 point."),
    ],
)
def test_the_answer_names_the_best_and_its_equals(
    design: Design, gains: tuple[float, float, float], expected: str
) -> None:
    tma, se, sts = (list(SHARED + gain + noise) for gain, noise in zip(gains, NOISE, strict=True))
    assert answer(comparison_of(tma=tma, se=se, sts=sts, design=design)) == expected


def test_the_answer_is_open_where_the_intervals_are_wide() -> None:
    noise = np.random.default_rng(2).normal(0, 4, 12)
    comparison = comparison_of(tma=list(SHARED), se=list(SHARED + 9 + NOISE[0]), sts=list(SHARED + 7 + noise))
    text = "se has the highest mean, but sts may be as good or better; tma is shown to be worse."
    assert answer(comparison) == f"Not settled on this data: {text}"


def test_findings_state_differences_equivalences_and_power() -> None:
    tma, se, sts = (list(SHARED + gain + noise) for gain, noise in zip((0.0, 4.0, 0.1), NOISE, strict=True))
    _, together, last = findings(comparison := comparison_of(tma=tma, se=se, sts=sts))
    values = sorted(pair.detectable for pair in comparison.paired if pair.detectable is not None)
    assert together == (
        "Corrected for 3 pairs of arms: a difference is shown for se - tma; equivalent within 1 point: sts - tma; "
        f"a true difference of {values[0]:.1f} to {values[-1]:.1f} points would have been shown with 80 % power."
    )
    assert last == answer(comparison)


def test_equivalence_is_two_one_sided_tests() -> None:
    found = set()
    for shift in np.linspace(-1.5, 1.5, 61):
        differences = shift + NOISE[0]
        p_values = [
            stats.ttest_1samp(differences, bound, alternative=side).pvalue
            for bound, side in ((-1.0, "greater"), (1.0, "less"))
        ]
        (pair,) = comparison_of(tma=list(SHARED), sts=list(SHARED + differences)).paired
        assert pair.equivalent == (max(p_values) < 0.05)
        found.add(pair.equivalent)
    assert found == {True, False}


def test_what_is_called_detectable_is_shown_in_four_of_five_studies() -> None:
    draws = np.random.default_rng(3)
    shown = []
    for _ in range(400):
        noise = draws.normal(0, 2, 10)
        typical = statistics.pair("a", "b", dict(enumerate(noise)), dict.fromkeys(range(10), 0.0), pairs=3)
        assert typical.detectable is not None
        detectable = typical.detectable * 2 / noise.std(ddof=1)  # at the true deviation
        again = dict(enumerate(draws.normal(detectable, 2, 10)))
        shown.append(statistics.pair("a", "b", again, dict.fromkeys(range(10), 0.0), pairs=3).conclusion == "better")
    assert 0.75 < np.mean(shown) < 0.87


def half_widths(values: np.ndarray, width: HalfWidth, level: float) -> np.ndarray:
    """Of all prefixes of at least two values: the deviation of each, times the width at a deviation of 1."""
    patterns = {n: np.tile([1.0, -1.0], n)[:n] for n in range(2, values.shape[1] + 1)}
    unit = {n: width(pattern / np.std(pattern, ddof=1), level) for n, pattern in patterns.items()}
    counts = np.arange(1, values.shape[1] + 1)
    squares = np.cumsum(values**2, 1) - np.cumsum(values, 1) ** 2 / counts
    deviations = np.sqrt(squares[:, 1:] / counts[:-1])
    return np.stack([deviations[:, n - 2] * unit[n] for n in counts[1:]], 1)


@pytest.mark.parametrize("level", [0.05, 0.05 / 6])
def test_a_confidence_sequence_holds_at_every_look_where_a_t_interval_does_not(level: float) -> None:
    values = np.random.default_rng(4).normal(0.0, 5.0, (4000, 200))  # the mean is 0: what an interval must contain
    means = (np.cumsum(values, 1) / np.arange(1, 201))[:, 1:]
    ever = {
        name: float(np.mean(np.any(np.abs(means) > half_widths(values, width, level), 1)))
        for name, width in (("sequence", confidence_sequence), ("t", student_t))
    }
    # Expected misses: at most `level`; 3 standard errors are allowed for the simulation.
    assert ever["sequence"] <= level + 3 * math.sqrt(level / 4000)
    assert ever["sequence"] > level / 4  # and it is not vacuous
    assert ever["t"] > 3 * level


def test_all_pairs_together_hold_while_seeds_are_added_until_the_widest_is_narrow() -> None:
    """The procedure as `compare` runs it: four arms, a look after every seed, and a stop that depends on the widths."""
    draws, missed, stops = np.random.default_rng(5), 0, []
    names, truth = ("tma", "se", "sts", "fast"), (0.0, 0.0, 1.0, -2.0)
    studies = 150
    for _ in range(studies):
        runs = 80 + draws.normal(0, 4, (1, 60)) + np.array(truth)[:, None] + draws.normal(0, 1.5, (4, 60))
        for n in range(3, 61):
            accuracies = {name: list(row[:n]) for name, row in zip(names, runs, strict=True)}
            comparison = comparison_of(**accuracies, design=Design(until=2.0))
            if comparison.settled(2.0, names):
                break
        stops.append(n)
        pairs = [(i, j, comparison.pair(names[i], names[j])) for i in range(4) for j in range(i)]
        intervals = [(truth[i] - truth[j], pair.ci95) for i, j, pair in pairs if pair and pair.ci95]
        assert len(intervals) == 6 and all(high - low <= 4.0 for _, (low, high) in intervals)
        missed += any(not low <= difference <= high for difference, (low, high) in intervals)
    assert missed / studies <= 0.05 + 3 * math.sqrt(0.05 / studies)
    assert 6 < np.mean(stops) < 40


def test_the_p_value_and_the_interval_of_a_confidence_sequence_agree() -> None:
    for shift in (0.5, 1.0, 1.5, 2.0, 3.0, 5.0):
        values = list(np.random.default_rng(6).normal(shift, 1.5, 9))
        for level in (0.05, 0.01):
            excluded = abs(np.mean(values)) > confidence_sequence(values, level)
            assert excluded == (mixture_p_value(values) < level)


def test_the_mixture_is_the_integral_it_claims_to_be() -> None:
    """B_n(0) by numerical integration over the effect size of the ratio of t densities."""
    values = [0.8, 2.1, -0.4, 1.9, 0.7, 1.4]
    n = len(values)
    t = float(np.mean(values) / np.std(values, ddof=1) * math.sqrt(n))
    effects = np.linspace(-9, 9, 2001)
    densities = stats.nct.pdf(t, n - 1, effects * math.sqrt(n)) * stats.norm.pdf(
        effects, 0, math.sqrt(statistics.PRIOR)
    )
    ratio = np.trapezoid(densities, effects) / stats.t.pdf(t, n - 1)
    assert mixture_p_value(values) == pytest.approx(1 / ratio, rel=1e-6)


def test_no_interval_of_a_confidence_sequence_is_given_too_early() -> None:
    comparison = comparison_of(tma=[90.0, 91.0, 92.0], sts=[91.0, 93.0, 92.5], design=UNTIL)
    (pair,) = comparison.paired
    assert pair.ci95 is None and pair.verdict == "open" and not comparison.settled(1e9, ["tma", "sts"])


def test_an_arm_that_was_dropped_is_not_the_best_for_its_easy_seeds() -> None:
    easy = [98.0 + noise for noise in NOISE[0, :6]] + list(SHARED[6:] - 20)  # the first six seeds are easy
    tma, sts = [value - 3 + noise for value, noise in zip(easy, NOISE[1], strict=True)][:6], easy
    comparison = comparison_of(tma=tma, sts=sts, design=UNTIL)
    means = {entry.smoothing: entry.mean for entry in comparison.summary}
    assert means["tma"] > means["sts"]
    assert comparison.beaten == ("tma",) and comparison.best == "sts"
    assert answer(comparison) == "Use sts on this data: tma is shown to be worse."


@pytest.mark.parametrize("design", [Design(), UNTIL])
def test_everything_goes_through_strict_json_and_back(design: Design, tmp_path: Path) -> None:
    comparison = comparison_of(tma=[50.0, 50.0], sts=[50.0, 50.0], fast=[51.0], design=design)
    comparison.write(tmp_path / "results.json")  # refuses NaN and infinity
    again = Comparison.read(tmp_path / "results.json")
    assert asdict(again) == asdict(comparison) and again.paired == comparison.paired


def test_results_of_version_0_1_are_read_or_refused(tmp_path: Path) -> None:
    comparison, path = comparison_of(tma=[50.0, 51.0], sts=[50.0, 53.0]), tmp_path / "results.json"
    comparison.write(path)
    old = json.loads(path.read_text())
    del old["arms"], old["design"]
    path.write_text(json.dumps(old))
    assert asdict(Comparison.read(path)) == asdict(comparison)
    old["runs"][0]["smoothing"] = "ema"
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match=f"{path}: .*got 'ema'; choose another --out"):
        Comparison.read(path)
    old["runs"][0] = {"arm": "tma"}
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match=f"{path} was not written by compare: choose another --out"):
        Comparison.read(path)
