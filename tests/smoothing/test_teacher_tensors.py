"""Which tensors an update moves: tied and frozen ones, those of other dtypes and names, and in other memory."""

import pytest
import torch
from smoothing.students import assert_equal, student, tensors, walk
from torch import nn

from spatial_ensemble import Teacher, distance, temporal_moving_average
from spatial_ensemble.smoothing import kernels, update
from spatial_ensemble.smoothing.pairing import canonical_name


def test_a_tied_weight_is_updated_once():
    net = student()
    start = net.encode.weight.detach().clone()
    teacher = Teacher(net, temporal_moving_average(0.5))
    walk(net, 0)
    teacher.update(net)
    assert teacher.module.encode.weight is teacher.module.decode.weight
    assert torch.equal(teacher.module.encode.weight, start.lerp(net.encode.weight, 0.5))


def test_a_weight_tied_by_its_memory_alone_is_updated_once():
    """As after `load_state_dict(torch.load(...), assign=True)`: two parameters, one storage."""
    net = student()
    net.decode.weight = nn.Parameter(net.encode.weight.detach())
    start = net.encode.weight.detach().clone()
    teacher = Teacher(net, temporal_moving_average(0.5))
    walk(net, 0)
    teacher.update(net)
    assert net.encode.weight is not net.decode.weight
    assert torch.equal(teacher.module.encode.weight, start.lerp(net.encode.weight, 0.5))


@pytest.mark.parametrize("kernel", ["plain", "chosen"])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5, 0.7, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_frozen_parameter_stays_to_the_bit_where_it_is_the_students(momentum, dtype, kernel, monkeypatch):
    if kernel == "plain":
        monkeypatch.setattr(kernels, "_cpu", lambda: None)
    net = nn.Linear(60, 7).requires_grad_(False)
    net.bias.copy_(torch.tensor([0.0, 1e-45, 3e38, -3e38, 1.1, 2**-126, 7e-39]))
    teacher = Teacher(net, temporal_moving_average(momentum), dtype=dtype)
    expected = tensors(teacher.module)
    for _ in range(3):
        teacher.update(net)
    assert_equal(tensors(teacher.module), expected)


def test_a_frozen_parameter_that_is_written_to_follows_the_rule():
    net = student().requires_grad_(False)
    teacher = Teacher(net, temporal_moving_average(0.5))
    expected = tensors(net)["conv.weight"]
    for step in range(3):
        walk(net, step)  # as if weights were loaded
        teacher.update(net)
        expected = expected.lerp(net.conv.weight, 0.5)
        assert torch.equal(teacher.module.conv.weight, expected)


def test_a_frozen_parameter_written_through_its_data_follows_the_rule():
    """As DINO moves the last layer, and any EMA written by hand its teacher: without a new version of the tensor."""
    net = student().requires_grad_(False)
    teacher = Teacher(net, temporal_moving_average(0.5))
    expected = tensors(net)["conv.weight"]
    for step in range(3):
        version = net.conv.weight._version
        net.conv.weight.data.mul_(0.9).add_(step)
        assert net.conv.weight._version == version
        teacher.update(net)
        expected = expected.lerp(net.conv.weight, 0.5)
        assert torch.equal(teacher.module.conv.weight, expected)


@pytest.mark.parametrize("kernel", ["plain", "chosen"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("teacher_dtype", [None, torch.float32])
def test_float8_has_no_arithmetic_and_is_copied(dtype, teacher_dtype, kernel, monkeypatch):
    if kernel == "plain":
        monkeypatch.setattr(kernels, "_cpu", lambda: None)
    net = student()
    net.register_buffer("scales", torch.ones(3).to(dtype))
    net.register_parameter("packed", nn.Parameter(torch.ones(3).to(dtype), requires_grad=False))
    teacher = Teacher(net, temporal_moving_average(0.5), dtype=teacher_dtype, on_nonfinite="raise")
    for value in (2.0, 4.0):
        net.scales.copy_(torch.full((3,), value))
        net.packed.data = torch.full((3,), value).to(dtype)
        before = teacher.module.conv.weight.clone()
        net.conv.weight.data.add_(value)
        teacher.update(net)
        assert torch.equal(teacher.module.scales.float(), torch.full((3,), value))
        assert torch.equal(teacher.module.packed.float(), torch.full((3,), value))
        assert torch.equal(teacher.module.conv.weight, before.lerp(net.conv.weight, 0.5))
    assert "scales" not in distance(teacher, net)
    with teacher.swap(net):
        pass


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_whatever_optimizer_trains_what_is_frozen_at_the_update_it_is_averaged(optimizer, options):
    net = student()
    trained = optimizer(net.parameters(), lr=0.1, **options)
    average, teacher = Teacher(net, temporal_moving_average(0.9)), Teacher(net, temporal_moving_average(0.9))
    for each in (average, teacher):
        each.update(net.requires_grad_(False))
    for _ in range(3):
        net.requires_grad_(True)
        trained.zero_grad()
        net(torch.ones(2, 3, 8, 8)).square().sum().backward()
        trained.step()
        average.update(net)
        teacher.update(net.requires_grad_(False))
    assert_equal(tensors(teacher.module), tensors(average.module))


def test_other_memory_and_another_shape_of_a_frozen_parameter_are_seen():
    net = student().requires_grad_(False)
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    before = net.conv.weight.clone()
    net.conv.weight.data = before + 1
    teacher.update(net)
    assert torch.equal(teacher.module.conv.weight, before.lerp(before + 1, 0.5))
    net.conv.weight.data = torch.zeros(2, 3, 3, 3)
    with pytest.raises(ValueError, match=r"'conv.weight' has shape \(2, 3, 3, 3\)"):
        teacher.update(net)


def test_frozen_weights_loaded_into_the_teachers_module_are_averaged_on():
    net, other = student(0).requires_grad_(False), student(1)
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    teacher.module.load_state_dict(other.state_dict())
    teacher.update(net)
    assert torch.equal(teacher.module.conv.weight, other.conv.weight.lerp(net.conv.weight, 0.5))


@pytest.mark.parametrize("policy", ["average", "copy", "keep"])
def test_a_mask_of_minus_infinity_stays_one(policy):
    net = student()
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    teacher = Teacher(net, temporal_moving_average(0.5), buffers=policy, on_nonfinite="raise")
    for _ in range(2):
        teacher.update(net)
        assert torch.equal(teacher.module.mask, net.mask)
    net.bn.running_mean.fill_(torch.nan)  # and no mask is made of what went wrong
    if policy != "keep":
        with pytest.raises(ValueError, match="running_mean' is non-finite"):
            teacher.update(net)


def test_a_mask_that_is_assigned_anew_is_copied():
    net = student()
    net.register_buffer("mask", torch.zeros(2))
    teacher = Teacher(net, temporal_moving_average(0.5))
    for mask in ([0.0, -torch.inf], [torch.inf, 3.0], [1.0, 2.0]):
        net.mask = torch.tensor(mask)
        for _ in range(2):
            teacher.update(net)
            assert torch.equal(teacher.module.mask, net.mask)
    net.mask = torch.tensor([3.0, 4.0])
    teacher.update(net)
    assert torch.equal(teacher.module.mask, torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("on_nonfinite", [None, "raise"])
def test_a_frozen_parameter_with_an_inf_is_copied_and_a_trained_one_follows_the_rule(on_nonfinite):
    net = student()
    net.scale.requires_grad_(False).fill_(-torch.inf)
    teacher = Teacher(net, temporal_moving_average(0.5), on_nonfinite=on_nonfinite)
    for _ in range(2):
        teacher.update(net)
        assert torch.equal(teacher.module.scale, net.scale)
    trained = Teacher(net, temporal_moving_average(0.5))
    net.scale.requires_grad_(True)
    trained.update(net)
    assert trained.module.scale.isnan()


def test_infinite_values_are_searched_when_the_plan_is_built_and_not_at_every_step(monkeypatch):
    net = student()
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    monkeypatch.setattr(update, "_holds_inf", lambda tensor: pytest.fail("searched again"))
    teacher.update(net)
    assert torch.equal(teacher.module.mask, net.mask)


@pytest.mark.parametrize("value", [[], [1.0, 2.0], [torch.nan], [torch.nan, torch.inf], [3e38, 3e38]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_only_an_inf_without_a_nan_counts_as_infinite(value, dtype):
    assert not update._holds_inf(torch.tensor(value, dtype=dtype))
    infinite = [x for x in value if x == x] + [-torch.inf]
    assert update._holds_inf(torch.tensor(infinite, dtype=dtype))


def test_buffers_that_share_memory_may_part():
    net = student()
    net.register_buffer("start", torch.ones(3))
    net.register_buffer("now", net.start.detach())
    teacher = Teacher(net, temporal_moving_average(0.5), buffers="copy")
    net.now = net.now * 2
    teacher.update(net)
    teacher.update(net)
    assert torch.equal(net.start, torch.ones(3)) and torch.equal(net.now, 2 * torch.ones(3))


def test_a_ready_module_may_share_a_constant_buffer_with_the_student():
    net, ready = student(0), student(1)
    for each in (net, ready):
        each.register_buffer("waves", torch.arange(3.0) if each is net else net.waves)
    assert Teacher(net, temporal_moving_average(0.5), module=ready).module.waves is net.waves


def test_a_state_loaded_into_a_teacher_of_a_frozen_student_is_averaged_on():
    net, other = student(0), student(1)
    net.requires_grad_(False)
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    saved = Teacher(other, temporal_moving_average(0.5))
    saved.update(other)
    teacher.load_state_dict(saved.state_dict())
    teacher.update(net)
    assert torch.equal(teacher.module.conv.weight, other.conv.weight.lerp(net.conv.weight, 0.5))


def test_an_unfrozen_parameter_follows():
    net = student()
    net.conv.requires_grad_(False)
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    own = teacher.module.conv.weight.fill_(7).clone()
    net.conv.requires_grad_(True)
    teacher.update(net)
    assert torch.equal(teacher.module.conv.weight, own.lerp(net.conv.weight, 0.5))


@pytest.mark.parametrize("needs_gradient", [lambda step: False, lambda step: step % 2, lambda step: step < 2])
def test_what_is_trained_is_averaged_whether_or_not_it_needs_a_gradient_when_update_is_called(needs_gradient):
    """As where a generator is frozen while the other network trains, or from some step on."""
    net = student()
    average, teacher = Teacher(net, temporal_moving_average(0.9)), Teacher(net, temporal_moving_average(0.9))
    for each in (average, teacher):
        each.update(net)
    for step in range(6):
        walk(net.requires_grad_(True), step)
        average.update(net)
        net.requires_grad_(bool(needs_gradient(step)))
        teacher.update(net)
    assert_equal(tensors(teacher.module), tensors(average.module))


class Called(nn.Module):
    """A network whose part is called like DistributedDataParallel's, beside a parameter of the same name as its own."""

    def __init__(self):
        super().__init__()
        self.module, self.weight = nn.Linear(2, 3), nn.Parameter(torch.zeros(5))


@pytest.mark.parametrize("wrap", [nn.Identity(), nn.DataParallel, torch.compile])
def test_a_part_called_like_a_wrapper_is_none(wrap):
    net = wrap(Called())
    teacher = Teacher(net, temporal_moving_average(0.5))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    expected = {
        name: t.lerp(s, 0.5) for (name, t), s in zip(tensors(teacher.module).items(), net.parameters(), strict=True)
    }
    teacher.update(net)
    assert_equal(tensors(teacher.module), expected)
    assert teacher.mask_layouts().keys() == expected.keys()


def test_buffers_that_are_kept_may_take_another_shape():
    net = student()
    teacher = Teacher(net, temporal_moving_average(0.5), buffers="keep")
    net.bn.running_mean = torch.zeros(99)
    teacher.update(net)
    assert teacher.step == 1 and teacher.module.bn.running_mean.shape == (8,)


def test_a_float32_teacher_of_a_bfloat16_student_moves():
    net = student().bfloat16()
    teacher = Teacher(net, temporal_moving_average(0.9999), dtype=torch.float32)
    start = teacher.module.conv.weight.clone()
    with torch.no_grad():
        net.conv.weight.add_(1)
    for _ in range(10):
        teacher.update(net)
    moved = (teacher.module.conv.weight - start).mean()
    assert teacher.module.conv.weight.dtype == torch.float32
    assert moved.item() == pytest.approx(1 - 0.9999**10, rel=0.02)


@pytest.mark.parametrize("kernel", ["plain", "chosen"])
def test_strides_changed_in_place_are_seen(kernel, monkeypatch):
    if kernel == "plain":
        monkeypatch.setattr(kernels, "_cpu", lambda: None)
    net = student()
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    before = teacher.module.encode.weight.clone()
    net.encode.weight.data = net.encode.weight.data.t()  # the same memory and number of elements
    teacher.update(net)
    assert torch.equal(teacher.module.encode.weight, before.lerp(before.t(), 0.5))


@pytest.mark.parametrize(
    "wrapper", ["module", "_orig_mod", "_checkpoint_wrapped_module", "_forward_module", "_original_module"]
)
def test_what_wrappers_add_to_a_name_is_left_out(wrapper):
    assert canonical_name(f"{wrapper}.layer.{wrapper}.weight") == "layer.weight"
    assert canonical_name(f"layer.{wrapper}s.weight") == f"layer.{wrapper}s.weight"
