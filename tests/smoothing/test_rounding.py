"""Half-precision teachers: stochastic rounding moves them by the right amount, and nothing else changes."""

import math

import pytest
import torch
from smoothing.students import assert_equal, student, tensors, walk
from torch import nn

from spatial_ensemble import Teacher, spatial_ensemble, spatial_temporal_smoothing, temporal_moving_average
from spatial_ensemble.smoothing import kernels
from spatial_ensemble.smoothing.rounding import HALF, stochastic
from spatial_ensemble.smoothing.state import unpack

DTYPES = list(HALF)
DRAWS = torch.arange(1 << 16)


@pytest.fixture(params=["plain", "chosen"])
def kernel(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(kernels, "_cpu", lambda: None)


def neighbours(x, dtype):
    """The largest value of a dtype that is at most x, and the next one."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).double()
    values = bits[bits.isfinite()].unique()
    i = torch.searchsorted(values, torch.tensor(x, dtype=torch.float64), right=True)
    return values[i - 1].item(), values[i].item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [1.00213, -1.00213, 0.9999, 3e-4, -3.00017e-6, 1e-7, 2**-14 - 1e-9, 60_000.5, -0.1])
def test_over_all_draws_the_mean_is_the_number_itself(x, dtype):
    number = torch.tensor(x)
    rounded = stochastic(number.expand(1 << 16), DRAWS, dtype).double()
    low, high = neighbours(number.item(), dtype)
    assert set(rounded.tolist()) <= {low, high}
    subnormal = dtype == torch.float16 and abs(x) < 2**-14
    assert abs(rounded.mean().item() - number.item()) <= (2.0**-24 * 2**-14 if subnormal else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draw", [0, 1, 40_000, 65_535])
def test_what_the_dtype_can_represent_stays(dtype, draw):
    exact = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    rounded = stochastic(exact.float(), torch.full((1 << 16,), draw), dtype)
    assert torch.equal(rounded.isnan(), exact.isnan())
    numbers = ~exact.isnan()
    assert torch.equal(rounded[numbers].view(torch.int16), exact[numbers].view(torch.int16))


def test_a_nan_of_any_bits_stays_nan():
    x = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1, -0x400000], dtype=torch.int32).view(torch.float32)
    for dtype in DTYPES:
        assert stochastic(x, torch.full((4,), 65_535), dtype).isnan().all()


def far(dtype, momentum, steps, rounding, unit="tensor", preserve_prob=0.0):
    """How far a teacher of ones gets on its way to a student of twos: every weight, on [0, 1]."""
    net = nn.Linear(64, 64, bias=False, dtype=dtype)
    nn.init.ones_(net.weight)
    smoothing = spatial_temporal_smoothing(momentum, preserve_prob)
    teacher = Teacher(net, smoothing, rounding=rounding, unit=unit)
    nn.init.constant_(net.weight, 2.0)
    for _ in range(steps):
        teacher.update(net)
    return teacher.module.weight.double() - 1


def assert_mean(values, expected):
    """Within four standard errors, and half a per mille for the student's share in float32."""
    error = values.std().item() / math.sqrt(values.numel())
    assert abs(values.mean().item() - expected) < 4 * error + 5e-4 * expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_teacher_moves_as_much_as_is_due(dtype):
    due = 1 - 0.9999**2000  # 18 %
    assert far(dtype, 0.9999, 2000, "nearest").mean() < 0.1 * due
    assert_mean(far(dtype, 0.9999, 2000, None), due)


def test_it_moves_so_in_plain_torch_too(kernel):
    assert_mean(far(torch.bfloat16, 0.999, 50, None), 1 - 0.999**50)


@pytest.mark.parametrize("preserve_prob", [0.3, 0.9])
def test_rounding_does_not_depend_on_which_elements_are_preserved(preserve_prob):
    due = 1 - (1 - 0.001 * (1 - preserve_prob)) ** 300
    assert_mean(far(torch.bfloat16, 0.999, 300, None, "element", preserve_prob), due)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_tensors_and_two_steps_are_rounded_by_other_draws(dtype):
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False, dtype=dtype) for _ in range(2)))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    teacher = Teacher(net, temporal_moving_average(0.9998))
    start = tensors(teacher.module)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 2.0)
    teacher.update(net)
    first = [moved != start[name] for name, moved in tensors(teacher.module).items()]
    middle = tensors(teacher.module)
    teacher.update(net)
    second = [moved != middle[name] for name, moved in tensors(teacher.module).items()]
    assert all(mask.any() for mask in first + second)
    for one, other in ((first[0], first[1]), (first[0], second[0])):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("student_dtype", [*DTYPES, torch.float32])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9999])
def test_a_weight_equal_to_the_students_never_moves(dtype, student_dtype, momentum, kernel):
    net = nn.Linear(60, 7, dtype=student_dtype)
    teacher = Teacher(net, temporal_moving_average(momentum), dtype=dtype)
    expected = tensors(teacher.module)
    for _ in range(5):
        teacher.update(net)
    assert_equal(tensors(teacher.module), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("momentum", [0.3, 0.99])
def test_beside_the_largest_number_nothing_overflows(dtype, momentum, kernel):
    most = torch.finfo(dtype).max
    before = neighbours(most * 0.9999, dtype)[0]
    net = nn.Linear(64, 64, bias=False, dtype=dtype)
    for start, end in ((most, before), (before, most), (-before, -most)):
        nn.init.constant_(net.weight, start)
        teacher = Teacher(net, temporal_moving_average(momentum))
        nn.init.constant_(net.weight, end)
        for _ in range(3):
            teacher.update(net)
        assert teacher.module.weight.isfinite().all()
        assert len(teacher.module.weight.unique()) == 2


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32, torch.float64])
def test_to_nearest_and_in_other_dtypes_an_update_has_the_bits_of_lerp(dtype, kernel):
    net = student().to(dtype)
    teacher = Teacher(net, temporal_moving_average(0.9), rounding="nearest" if dtype in HALF else "stochastic")
    expected = tensors(net)
    for step in range(3):
        walk(net, step)
        teacher.update(net)
        for name, s in tensors(net).items():
            expected[name] = expected[name].lerp(s, 1 - 0.9) if s.is_floating_point() else s
    assert_equal(tensors(teacher.module), expected)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex_numbers_of_half_precision_are_rounded_to_nearest():
    net = nn.ParameterList([torch.ones(9, dtype=torch.complex32)])
    teacher = Teacher(net, temporal_moving_average(0.0))
    assert teacher.mask_layouts()["0"].rounding is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_is_a_copy(dtype, kernel):
    net = student().to(dtype)
    teacher = Teacher(net, spatial_ensemble(0.0))
    walk(net, 0)
    teacher.update(net)
    assert_equal(tensors(teacher.module), tensors(net))


@pytest.mark.parametrize("dtype", DTYPES)
def test_averaged_buffers_are_rounded_so_too(dtype):
    net = nn.BatchNorm1d(4096, dtype=dtype)
    teacher = Teacher(net, temporal_moving_average(0.999))
    net.running_var += 1
    for _ in range(20):
        teacher.update(net)
    assert_mean(teacher.module.running_var.double() - 1, 1 - 0.999**20)


@pytest.mark.parametrize("unit", ["tensor", "element"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_resumed_teacher_continues_to_the_bit(dtype, unit):
    def run(teacher, net, steps):
        for step in steps:
            walk(net, step)
            teacher.update(net)

    def new():
        net = student().to(dtype)
        return net, Teacher(net, spatial_temporal_smoothing(0.99, 0.3), unit=unit, seed=5)

    net, teacher = new()
    run(teacher, net, range(6))
    first_net, first = new()
    run(first, first_net, range(3))
    second_net, second = new()
    second_net.load_state_dict(first_net.state_dict())
    second.load_state_dict(first.state_dict())
    run(second, second_net, range(3, 6))
    assert_equal(tensors(second.module), tensors(teacher.module))


def test_a_half_precision_state_of_the_other_rounding_is_refused():
    def new(rounding, dtype=torch.bfloat16):
        return Teacher(nn.Linear(2, 2, dtype=dtype), temporal_moving_average(0.9), rounding=rounding)

    with pytest.raises(ValueError, match=r"rounding='nearest', this one 'stochastic'.*with rounding='nearest'"):
        new(None).load_state_dict(new("nearest").state_dict())
    new("stochastic").load_state_dict(new(None).state_dict())
    new(None, torch.float32).load_state_dict(new("nearest", torch.float32).state_dict())
    for rounding in (None, "nearest"):
        old = new(rounding).state_dict()
        state = unpack(old["_extra_state"])
        del state["rounding"]
        old["_extra_state"] = state  # a dict, as version 0.1 kept it
        new(rounding).load_state_dict(old)
    with pytest.raises(ValueError, match="rounding must be one of None, 'stochastic', 'nearest', got 'up'"):
        new("up")


def test_rounding_set_later_counts_from_the_next_update():
    net = nn.Linear(64, 64, dtype=torch.bfloat16)
    nn.init.ones_(net.weight)
    teacher = Teacher(net, temporal_moving_average(0.9999), rounding="nearest")
    start = tensors(teacher.module)
    nn.init.constant_(net.weight, 2.0)
    teacher.update(net)
    assert_equal(tensors(teacher.module), start)
    teacher.rounding = "stochastic"
    teacher.update(net)
    assert not torch.equal(teacher.module.weight, start["weight"])
