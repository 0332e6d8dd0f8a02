"""The statistics against the formulas written out, and the sentence against what it may claim."""

import json
import math

import pytest
from scipy import stats

from spatial_ensemble.studies.statistics import mean_interval, paired_differences, sentence, summarise, verdict


def runs_of(**accuracies: list[float]) -> list[dict]:
    return [
        {"smoothing": name.replace("_", "-"), "seed": seed, "teacher_accuracy": value}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def t_interval(values: list[float]) -> tuple[float, float]:
    n, mean = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half


def test_mean_and_interval_follow_the_t_formula() -> None:
    values = [96.1, 97.5, 95.0, 96.6]
    (entry,) = summarise(runs_of(sts=values))
    assert entry["runs"] == 4 and entry["mean"] == pytest.approx(sum(values) / 4)
    assert entry["ci95"] == pytest.approx(t_interval(values))


def test_paired_difference_follows_the_t_formula() -> None:
    tma, sts = [95.0, 97.0, 90.0], [96.0, 97.5, 92.5]
    (pair,) = paired_differences(runs_of(tma=tma, sts=sts))
    differences = [1.0, 0.5, 2.5]
    assert pair["mean_difference"] == pytest.approx(4 / 3)
    assert pair["ci95"] == pytest.approx(t_interval(differences))
    low, high = t_interval(differences)
    t_value = (4 / 3) / ((high - low) / 2 / stats.t.ppf(0.975, 2))
    assert pair["p_value"] == pytest.approx(2 * stats.t.sf(t_value, 2))
    assert pair["seeds"] == [0, 1, 2]


def test_only_matched_seeds_enter_a_difference() -> None:
    runs = runs_of(tma=[90.0, 91.0, 92.0], sts=[91.0, 93.0])
    (pair,) = paired_differences(runs[::-1])  # the order of the runs says nothing
    assert pair["seeds"] == [0, 1] and pair["mean_difference"] == pytest.approx(1.5)


def test_each_pair_appears_once_and_in_order() -> None:
    runs = runs_of(tma=[90.0, 91.0], tma_matched=[90.5, 91.0], se=[92.0, 91.0], sts=[93.0, 94.0])
    assert [(pair["smoothing"], pair["baseline"]) for pair in paired_differences(runs)] == [
        ("tma-matched", "tma"),
        ("se", "tma"),
        ("sts", "tma"),
        ("se", "tma-matched"),
        ("sts", "tma-matched"),
    ]


def test_one_seed_has_no_interval_and_says_so() -> None:
    runs = runs_of(tma=[90.0], sts=[99.0])
    (pair,) = paired_differences(runs)
    assert pair["ci95"] is None and pair["p_value"] is None and pair["mean_difference"] == pytest.approx(9.0)
    assert all(entry["ci95"] is None for entry in summarise(runs))
    assert "One seed shows nothing" in sentence([pair])


@pytest.mark.parametrize(("gain", "p_value"), [(0.0, 1.0), (0.3, None)])
def test_equal_differences_have_no_spread_no_warning_and_no_claim(gain: float, p_value: float | None) -> None:
    (pair,) = paired_differences(runs_of(tma=[97.1, 96.2, 95.7], sts=[97.1 + gain, 96.2 + gain, 95.7 + gain]))
    assert pair["ci95"] == pytest.approx([gain, gain]) and pair["p_value"] == p_value
    assert "a better teacher" not in sentence([pair])


def test_equal_accuracies_have_an_interval_without_width() -> None:
    assert mean_interval([10.0, 10.0, 10.0]) == [10.0, 10.0]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [([0.1, 1.0], "better"), ([-1.0, -0.1], "worse"), ([-0.1, 1.0], "open"), ([0.0, 1.0], "open")],
)
def test_verdict(interval: list[float], expected: str) -> None:
    assert verdict({"ci95": interval}) == expected


def test_sentence_separates_what_is_shown_from_what_is_not() -> None:
    def pair(smoothing: str, interval: list[float]) -> dict:
        return {"smoothing": smoothing, "baseline": "tma", "ci95": interval, "seeds": [0, 1, 2]}

    text = sentence([pair("se", [0.2, 1.0]), pair("sts", [-0.2, 1.0]), pair("tma-matched", [-3.0, -1.0])])
    assert text == (
        "Over 3 matched seeds, the 95 % interval lies above zero for se - tma (a better teacher on this data), "
        "lies below zero for tma-matched - tma (a worse teacher on this data), "
        "contains zero for sts - tma (no difference is shown)."
    )
    nothing = sentence([pair("se", [-1, 1]), pair("sts", [0, 1])])
    assert "every 95 % interval contains zero (se - tma, sts - tma)" in nothing and "do not show" in nothing
    assert "no matched pair" in sentence([])


def test_pairs_of_fewer_seeds_are_not_counted_among_those_of_more() -> None:
    text = sentence(paired_differences(runs_of(tma=[90.0, 91.0, 92.0], sts=[90.5, 90.5, 93.0], se=[95.0])))
    assert text.startswith("Over 1 to 3 matched seeds, the 95 % interval contains zero for sts - tma")
    assert text.endswith("is not known for se - tma (one seed).")


def test_everything_is_strict_json() -> None:
    runs = runs_of(tma=[50.0, 50.0], sts=[50.0, 50.0], se=[51.0])
    json.dumps([summarise(runs), paired_differences(runs)], allow_nan=False)
