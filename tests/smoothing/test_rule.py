"""The rule and its schedules: what is allowed, and what the three settings are."""

import math
import pickle

import numpy as np
import pytest
import torch
from smoothing.students import assert_equal, student, tensors, walk
from torch import nn

from spatial_ensemble import (
    Smoothing,
    Teacher,
    constant,
    cosine,
    delayed,
    half_life,
    linear,
    power,
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
        (power(1.0), {0: 0.0, 1: 0.25, 9: 0.81}),
        (power(-0.5, update_every=3), {0: 0.0, 2: 0.0, 5: 0.5**0.5, 11: 0.75**0.5}),
        (half_life(20), {0: 0.5**0.05, 1000: 0.5**0.05}),
        (half_life(20, update_every=10), {0: 0.5**0.5}),
        (delayed(3, 0.9), {0: 0.0, 2: 0.0, 3: 0.9, 100: 0.9}),
        (delayed(3, linear(0.2, 0.6, steps=4)), {2: 0.0, 3: 0.2, 4: 0.3, 7: 0.6}),
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: power(-1.0), "gamma must be above -1, got -1.0"),
        (lambda: power(math.nan), "gamma must be above -1, got nan"),
        (lambda: power(1.0, update_every=0), "update_every must be at least 1, got 0"),
        (lambda: half_life(0), "steps must be above 0, got 0"),
        (lambda: half_life(1, update_every=0), "update_every must be at least 1, got 0"),
        (lambda: delayed(-1, 0.9), "start must be at least 0, got -1"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Number(nn.Module):
    """A student of one weight in float64."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))


@pytest.mark.parametrize("update_every", [1, 3])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 6.94])
def test_a_power_average_weighs_students_by_a_power_of_their_number(gamma, update_every):
    net = Number()
    teacher = Teacher(net, temporal_moving_average(power(gamma, update_every=update_every)), update_every=update_every)
    values = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for value in values:
        nn.init.constant_(net.weight, value)
        teacher.update(net)
    ends = torch.arange(0, 31, update_every, dtype=torch.float64) ** (gamma + 1)
    expected = (ends.diff() / ends[-1] * values[update_every - 1 :: update_every]).sum()
    torch.testing.assert_close(teacher.module.weight[0], expected)
    if gamma == 0 and update_every == 1:
        torch.testing.assert_close(expected, values.mean())


@pytest.mark.parametrize("update_every", [1, 5])
def test_after_a_half_life_half_of_the_first_student_is_left(update_every):
    net = Number(1.0)
    rule = temporal_moving_average(half_life(20, update_every=update_every))
    teacher = Teacher(net, rule, update_every=update_every)
    nn.init.zeros_(net.weight)
    for _ in range(20):
        teacher.update(net)
    torch.testing.assert_close(teacher.module.weight.item(), 0.5)
    assert rule.half_life() == pytest.approx(20 / update_every)


@pytest.mark.parametrize(("momentum", "preserve_prob"), [(0.9, 0.0), (0.0, 0.7), (0.8, 0.5)])
def test_the_half_life_of_a_rule_is_that_of_its_expected_weight(momentum, preserve_prob):
    rule = spatial_temporal_smoothing(momentum, preserve_prob)
    net = nn.Linear(1, 20_000, bias=False)
    nn.init.ones_(net.weight)
    teacher = Teacher(net, rule, unit="element")
    nn.init.zeros_(net.weight)
    updates = 5
    for _ in range(updates):
        teacher.update(net)
    assert 2 ** (-updates / rule.half_life()) == pytest.approx(teacher.module.weight.mean().item(), abs=0.01)


def test_half_lives_at_the_ends_and_along_a_schedule():
    assert temporal_moving_average(0.0).half_life() == 0
    assert temporal_moving_average(1.0).half_life() == spatial_ensemble(1.0).half_life() == math.inf
    assert temporal_moving_average(delayed(3, 0.5)).half_life(step=2) == 0
    assert temporal_moving_average(delayed(3, 0.5)).half_life(step=3) == pytest.approx(1)
    assert temporal_moving_average(1 - 1e-12).half_life() == pytest.approx(math.log(2) * 1e12, rel=1e-4)
