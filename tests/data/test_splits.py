import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_ensemble.data.splits import balanced_indices, draw_per_class, without
from spatial_ensemble.errors import UserError

CLASSES = ("cat", "dog", "owl")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 2), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 2**40))
def test_every_class_gives_as_many_or_it_is_an_error(labels, each, seed):
    labels = torch.tensor(labels)
    counts = [int((labels == label).sum()) for label in range(3)]
    if each > min(counts):
        with pytest.raises(UserError, match=re.escape(repr(CLASSES[counts.index(min(counts))]))):
            balanced_indices(labels, 3 * each, CLASSES, seed)
    else:
        indices = balanced_indices(labels, 3 * each, CLASSES, seed)
        assert indices.dtype == torch.int64
        assert indices.tolist() == sorted(set(indices.tolist()))
        assert torch.bincount(labels[indices], minlength=3).tolist() == [each] * 3


def test_the_seed_decides_and_smaller_draws_are_among_larger_ones():
    labels = torch.arange(300) % 3
    draws = {seed: balanced_indices(labels, 60, CLASSES, seed) for seed in range(5)}
    assert torch.equal(draws[0], balanced_indices(labels, 60, CLASSES, 0))
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 5
    for seed, draw in draws.items():
        assert set(balanced_indices(labels, 12, CLASSES, seed).tolist()) < set(draw.tolist())


def test_every_image_of_a_class_is_drawn_equally_often():
    labels = torch.arange(30) % 3
    times = sum(torch.bincount(balanced_indices(labels, 9, CLASSES, seed), minlength=30) for seed in range(600))
    # Binomial(600, 3/10): 180 +- 11.2; five deviations either side.
    assert times.min() > 124 and times.max() < 236


def test_all_labelled_images_without_a_count():
    labels = torch.tensor([2, -1, 0, 0, -1, 1])
    assert balanced_indices(labels, None, CLASSES, 0).tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "0 labels cannot be shared out evenly over 3 classes: try 3"),
        (-3, "-3 labels cannot be shared out evenly over 3 classes: try 3"),
        (10, "10 labels cannot be shared out evenly over 3 classes: try 9"),
        (12, "12 labels are 4 of each class, but class 'owl' has only 2 training images: at most 6 labels"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_that_says_what_can(count, message):
    with pytest.raises(UserError) as error:
        balanced_indices(torch.tensor([0] * 5 + [1] * 4 + [2] * 2 + [-1] * 9), count, CLASSES, 0)
    assert str(error.value) == message


def test_the_global_generator_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    first = balanced_indices(torch.arange(30) % 3, 9, CLASSES, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(balanced_indices(torch.arange(30) % 3, 9, CLASSES, 7), first)


def test_what_is_drawn_and_the_rest_are_everything():
    labels = torch.arange(20) % 4
    drawn = draw_per_class(labels, [1, 2, 0, 5], 3, "held out")
    assert torch.bincount(labels[drawn], minlength=4).tolist() == [1, 2, 0, 5]
    assert torch.cat([drawn, without(20, drawn)]).sort().values.tolist() == list(range(20))
