"""What a teacher tells of itself: ages, fingerprint, distance."""

import pytest
import torch
from smoothing.students import student, tensors, walk
from torch import nn

from spatial_ensemble import (
    Smoothing,
    Teacher,
    distance,
    fraction_replaced,
    spatial_ensemble,
    spatial_temporal_smoothing,
)
from spatial_ensemble.smoothing.units import UNITS

STS = spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.7)


def test_ages_agree_with_what_moved():
    net = student()
    teacher = Teacher(net, STS, unit="element")
    counts = {name: torch.zeros(p.shape, dtype=torch.int64) for name, p in teacher.module.named_parameters()}
    for step in range(12):
        before = tensors(teacher.module)
        walk(net, step)
        teacher.update(net)
        for name, count in counts.items():
            moved = tensors(teacher.module)[name] != before[name]
            count.add_(1)[moved] = 0
    for name, age in teacher.age().items():
        name = "encode.weight" if name == "decode.weight" else name
        assert torch.equal(age.reshape(counts[name].shape), counts[name]), name
    moved = sum(int((count == 0).sum()) for count in counts.values())
    assert fraction_replaced(teacher) == moved / sum(count.numel() for count in counts.values())


def test_the_fraction_replaced_is_that_of_the_last_update_that_acted():
    net = student()
    teacher = Teacher(net, spatial_ensemble(0.0), update_every=3)
    found = []
    for _ in range(7):
        teacher.update(net)
        found.append(fraction_replaced(teacher))
    assert found == [0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("unit", UNITS)
def test_ages_and_the_fraction_are_those_of_the_schedules(unit):
    net = student()
    momenta, chances = [0.5, 1.0, 0.0, 0.5, 0.5, 0.5], [0.3, 0.0, 0.8, 1.0, 0.6, 0.9]
    teacher = Teacher(net, Smoothing(momenta.__getitem__, chances.__getitem__), unit=unit)
    counts = {name: torch.zeros(p.shape, dtype=torch.int64) for name, p in teacher.module.named_parameters()}
    for step in range(6):
        before = tensors(teacher.module)
        walk(net, step)
        teacher.update(net)
        for name, count in counts.items():
            count.add_(1)[tensors(teacher.module)[name] != before[name]] = 0
        for name, age in teacher.age().items():
            count = counts["encode.weight" if name == "decode.weight" else name]
            assert torch.equal(age.reshape(-1, 1).expand(-1, count.numel() // age.numel()).reshape(count.shape), count)
        moved = sum(int((count == 0).sum()) for count in counts.values())
        assert fraction_replaced(teacher) == moved / sum(count.numel() for count in counts.values())


def test_ages_follow_the_geometric_law():
    net = nn.Linear(300, 300)
    teacher = Teacher(net, spatial_ensemble(0.7), unit="element")
    for _ in range(60):
        teacher.update(net)
    age = torch.cat([a.flatten() for a in teacher.age().values()]).double()
    assert age.mean().item() == pytest.approx(0.7 / 0.3, rel=0.02)
    for k in range(5):
        assert (age == k).double().mean().item() == pytest.approx(0.3 * 0.7**k, abs=0.006)


def test_fingerprint_tells_equal_from_different():
    first, second = student(), student()
    one, other = Teacher(first, STS), Teacher(second, STS)
    assert one.fingerprint() == other.fingerprint()
    with torch.no_grad():
        other.module.bn.running_var[0] += 1e-6
    assert one.fingerprint() != other.fingerprint()
    other.module.bn.running_var.copy_(one.module.bn.running_var)
    assert one.fingerprint() == other.fingerprint()
    other.step += 1
    assert one.fingerprint() != other.fingerprint()
    assert one.verify_ranks() == {}  # one process agrees with itself


def test_distance_is_euclidean():
    net = student()
    teacher = Teacher(net, STS)
    with torch.no_grad():
        net.conv.bias.add_(2)
    assert distance(teacher, net)["conv.bias"] == pytest.approx(2 * 8**0.5, rel=1e-6)
