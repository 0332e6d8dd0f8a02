"""The rule and its schedules: what is allowed, and what the three settings are."""

import math
import pickle

import numpy as np
import pytest
import torch
from smoothing.students import assert_equal, student, tensors, walk

from spatial_ensemble import (
    Smoothing,
    Teacher,
    constant,
    cosine,
    linear,
    spatial_ensemble,
    spatial_temporal_smoothing,
    temporal_moving_average,
    warmup,
)


def test_named_settings_are_one_rule():
    assert temporal_moving_average(0.99) == Smoothing(momentum=0.99, preserve_prob=0.0)
    assert spatial_ensemble(0.7) == Smoothing(momentum=0.0, preserve_prob=0.7)
    assert spatial_temporal_smoothing(0.99, 0.7) == Smoothing(momentum=0.99, preserve_prob=0.7)


@pytest.mark.parametrize("name", ["momentum", "preserve_prob"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.5", None, True])
def test_a_value_outside_the_unit_interval_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a number in \[0, 1\], got"):
        Smoothing(**{"momentum": 0.5, "preserve_prob": 0.5, name: value})


def test_a_schedule_that_leaves_the_unit_interval_is_refused_where_it_does():
    smoothing = Smoothing(lambda step: 0.5 + 0.1 * step)
    assert smoothing.at(5) == (1.0, 0.0)
    with pytest.raises(ValueError, match=r"momentum .* at step 6"):
        smoothing.at(6)


@pytest.mark.parametrize("value", [-0.1, math.nan, "0.5", True])
def test_a_buffer_momentum_outside_the_unit_interval_is_refused(value):
    with pytest.raises(ValueError, match=r"buffer_momentum must be a number in \[0, 1\], got"):
        Smoothing(0.5, buffer_momentum=value)


def test_numbers_of_numpy_are_numbers():
    assert Smoothing(np.float32(0.5), np.int64(0)).at(0) == (0.5, 0.0)
    assert all(type(value) is float for value in Smoothing(np.float32, lambda step: np.float64(step)).at(1))


def test_matched_has_the_same_expected_update_rate_at_every_step():
    smoothing = spatial_temporal_smoothing(cosine(0.9, 1.0, steps=50), linear(0.0, 0.8, steps=50))
    for step in range(60):
        momentum, preserve_prob = smoothing.at(step)
        matched, zero = smoothing.matched().at(step)
        assert zero == 0 and 1 - matched == pytest.approx((1 - preserve_prob) * (1 - momentum), abs=1e-15)
        assert smoothing.matched().buffer_momentum_at(step) == momentum


def test_matched_is_the_moving_average_whose_buffers_move_as_fast_as_before():
    smoothing = spatial_temporal_smoothing(0.9, 0.5)
    plain = temporal_moving_average(0.95)
    net = student()
    teachers = [Teacher(net, rule) for rule in (smoothing, smoothing.matched(), plain)]
    for step in range(5):
        walk(net, step)
        for teacher in teachers:
            teacher.update(net)
    both, matched, average = (tensors(teacher.module) for teacher in teachers)
    for name in both:
        expected = both if name.startswith("bn.running") else average
        torch.testing.assert_close(matched[name], expected[name], rtol=1e-6, atol=1e-7)
    assert smoothing.matched().matched() == smoothing.matched()


def test_buffers_may_have_a_schedule_of_their_own():
    net = student()
    teacher = Teacher(net, Smoothing(0.5, buffer_momentum=linear(0.0, 2.0, steps=2)))
    start = tensors(net)
    walk(net, 0)
    teacher.update(net)
    assert torch.equal(teacher.module.bn.running_mean, net.bn.running_mean)
    walk(net, 1)
    teacher.update(net)
    assert not torch.equal(teacher.module.bn.running_mean, net.bn.running_mean)
    before = tensors(teacher.module)
    with pytest.raises(ValueError, match=r"buffer_momentum must be a number in \[0, 1\], got 2\.0 at step 2"):
        teacher.update(net)
    assert_equal(tensors(teacher.module), before)
    teacher.smoothing = Smoothing(0.0)  # and what follows the momentum again
    teacher.update(net)
    assert torch.equal(teacher.module.bn.running_mean, net.bn.running_mean)
    assert not torch.equal(teacher.module.bn.running_mean, start["bn.running_mean"])


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (constant(0.3), {0: 0.3, 1000: 0.3}),
        (linear(0.2, 0.6, steps=4), {0: 0.2, 1: 0.3, 4: 0.6, 9: 0.6}),
        (cosine(0.99, 1.0, steps=100), {0: 0.99, 50: 0.995, 100: 1.0, 200: 1.0}),
        (warmup(0.999, steps=10), {0: 0.1, 10: 0.55, 10**6: 0.999}),
    ],
)
def test_schedules_pass_through_their_points_and_travel_to_other_processes(schedule, points):
    for step, value in points.items():
        assert schedule(step) == pytest.approx(value, abs=1e-12)
        assert pickle.loads(pickle.dumps(schedule))(step) == schedule(step)


def test_cosine_is_the_papers():
    for step in range(101):
        assert cosine(0.99, 1.0, steps=100)(step) == pytest.approx(
            1 - (1 - 0.99) * (1 + math.cos(math.pi * step / 100)) / 2, abs=1e-15
        )


@pytest.mark.parametrize("make", [lambda n: linear(0, 1, n), lambda n: cosine(0, 1, n), lambda n: warmup(1, n)])
def test_a_schedule_of_no_steps_is_refused(make):
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        make(0)
