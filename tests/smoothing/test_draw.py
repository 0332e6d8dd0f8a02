"""The draws: the published generator, and masks that are as random as the maths assumes."""

import numpy as np
import pytest
import reference
import torch
from scipy import stats

from spatial_ensemble.smoothing.draw import (
    DRAW_RANGE,
    draw_key,
    draws_at,
    draws_between,
    philox4x32,
    threshold,
)

# Random123's kat_vectors: rounds, counter, key, output.
KNOWN = [
    (7, "00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("rounds", "counter", "key", "output"), KNOWN)
def test_philox_meets_its_known_answers_in_integers_tensors_and_the_oracle(rounds, counter, key, output):
    assert philox4x32(words(counter), words(key), rounds) == words(output)
    as_tensors = philox4x32(tuple(torch.tensor([w]) for w in words(counter)), words(key), rounds)
    assert tuple(int(w) for w in as_tensors) == words(output)
    assert tuple(reference.philox4x32(list(words(counter)), list(words(key)), rounds)) == words(output)


def test_draws_are_the_oracles_wherever_a_range_begins():
    key = draw_key(3, "conv.weight")
    expected = [reference.draw(3, "conv.weight", 9, i) for i in range(1500)]
    assert draws_between(key, 9, 0, 1500).tolist() == expected
    assert draws_between(key, 9, 777, 1100).tolist() == expected[777:1100]
    assert draws_at(key, 9, torch.arange(1500)).tolist() == expected
    assert draws_at(key, 2**33 + 1, torch.tensor([2**40])).tolist() == [
        reference.draw(3, "conv.weight", 2**33 + 1, 2**40)
    ]


def test_threshold_is_p_to_16_bits_and_never_rounds_a_chance_away():
    assert [threshold(p) for p in (0.0, 0.5, 1.0)] == [0, DRAW_RANGE // 2, DRAW_RANGE]
    assert threshold(1e-9) == 1 and threshold(1 - 1e-9) == DRAW_RANGE - 1
    assert all(abs(threshold(p) / DRAW_RANGE - p) <= 2**-17 for p in np.linspace(0.001, 0.999, 500))


@pytest.mark.parametrize("across", ["indices", "steps", "names", "seeds"])
def test_draws_are_uniform_and_without_serial_correlation(across):
    n = 20_000
    if across == "indices":
        draws = draws_between(draw_key(0, "w"), 0, 0, n)
    elif across == "steps":
        draws = torch.cat([draws_at(draw_key(0, "w"), step, torch.tensor([0])) for step in range(n // 10)])
    elif across == "names":
        keys = torch.tensor([draw_key(0, f"layer{i}.weight") for i in range(n)])
        draws = draws_at((keys[:, 0], keys[:, 1]), 0, torch.zeros(n, dtype=torch.int64))
    else:
        keys = torch.tensor([draw_key(seed, "w") for seed in range(n)])
        draws = draws_at((keys[:, 0], keys[:, 1]), 0, torch.zeros(n, dtype=torch.int64))
    counts = np.bincount((draws // (DRAW_RANGE // 64)).numpy(), minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-4
    values = draws.double().numpy()
    for lag in (1, 2, 8, 64, 512):
        correlation = np.corrcoef(values[:-lag], values[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(len(values) - lag), (across, lag)


@pytest.mark.parametrize("preserve_prob", [0.1, 0.5, 0.7, 0.99])
def test_the_fraction_kept_agrees_with_p(preserve_prob):
    kept = (draws_between(draw_key(1, "w"), 4, 0, 200_000) < threshold(preserve_prob)).sum().item()
    assert stats.binomtest(kept, 200_000, preserve_prob).pvalue > 1e-4


def test_masks_of_neighbouring_steps_and_names_are_independent():
    def mask(name, step):
        return (draws_between(draw_key(0, name), step, 0, 100_000) < threshold(0.7)).numpy()

    for left, right in ((mask("a", 0), mask("a", 1)), (mask("a", 0), mask("b", 0))):
        table = [[(left & right).sum(), (left & ~right).sum()], [(~left & right).sum(), (~left & ~right).sum()]]
        assert stats.chi2_contingency(table).pvalue > 1e-4
