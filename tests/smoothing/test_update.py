"""The cached plan: rebuilt whenever a stale one would update from or into other tensors, and only then."""

import gc
import weakref

import pytest
import torch
from smoothing.students import student, tensors, walk
from torch import nn

from spatial_ensemble import Smoothing, Teacher, spatial_temporal_smoothing, temporal_moving_average
from spatial_ensemble.smoothing import kernels


@pytest.fixture(params=["plain", "chosen"], autouse=True)
def kernel(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(kernels, "_cpu", lambda: None)


def replaced_module(net):
    net.conv = nn.Conv2d(3, 8, 3, padding=1)


def replaced_container(net):
    net.bn = nn.BatchNorm2d(8)


def assigned_parameter(net):
    net.conv.weight = nn.Parameter(net.conv.weight.detach() + 1)


def assigned_buffer(net):
    net.bn.running_mean = net.bn.running_mean + 1


def assigned_integer_buffer(net):
    net.bn.num_batches_tracked = net.bn.num_batches_tracked + 7


def other_memory(net):
    net.conv.weight.data = net.conv.weight.data + 1


def other_memory_of_a_buffer(net):
    net.bn.running_var.data = net.bn.running_var.data + 1


def other_memory_of_a_0d_parameter(net):
    net.scale.data = net.scale.data + 1


def transposed_in_place(net):
    net.encode.weight.data = net.encode.weight.data.t()  # same address, number of elements and shape


def spread_in_place(net):
    net.conv.bias.data = net.conv.bias.data.as_strided((8,), (2,))  # same address, number of elements and shape


def double_in_place(net):
    net.conv.double()  # `module.to` keeps the parameters and swaps their memory


def tied_anew(net):
    net.encode.weight = net.decode.weight = nn.Parameter(torch.randn(8, 8))


CHANGES = [
    replaced_module,
    replaced_container,
    assigned_parameter,
    assigned_buffer,
    assigned_integer_buffer,
    other_memory,
    other_memory_of_a_buffer,
    other_memory_of_a_0d_parameter,
    transposed_in_place,
    spread_in_place,
    double_in_place,
    tied_anew,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("changed", ["student", "teacher"])
def test_what_changes_in_either_module_is_what_is_averaged_next(change, changed):
    net, ready = student(), student()
    for each in (net, ready):
        each.conv.bias.data = torch.randn(16)[:8]
    teacher = Teacher(net, temporal_moving_average(0.5), module=ready)
    walk(net, 0)
    teacher.update(net)
    with torch.no_grad():
        change(net if changed == "student" else teacher.module)
    before, named = tensors(teacher.module), dict(teacher.module.named_parameters())
    teacher.update(net)
    for name, s in tensors(net).items():
        t = before[name]
        expected = t.lerp(s.to(t.dtype), 0.5) if t.is_floating_point() else s
        assert torch.equal(tensors(teacher.module)[name], expected), name
    assert all(tensor is named[name] for name, tensor in teacher.module.named_parameters())


def test_two_parameters_that_exchange_their_names_are_paired_anew():
    net = student()
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    before = tensors(teacher.module)
    net.bn.weight, net.bn.bias = net.bn.bias, net.bn.weight
    teacher.update(net)
    for name in ("bn.weight", "bn.bias"):
        assert torch.equal(tensors(teacher.module)[name], before[name].lerp(tensors(net)[name], 0.5))


def test_a_parameter_under_another_name_is_seen():
    net = student()
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    scale = net.scale
    del net.scale
    net.factor = scale  # the same tensors in the same order
    with pytest.raises(ValueError, match="missing 'scale'; extra 'factor'"):
        teacher.update(net)


def test_a_parameter_added_where_there_was_none_is_seen():
    net = student()
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    net.encode.bias = nn.Parameter(torch.zeros(8))
    with pytest.raises(ValueError, match=r"extra 'encode.bias'"):
        teacher.update(net)


SETTINGS = {
    "seed": lambda teacher: setattr(teacher, "seed", 9),
    "unit": lambda teacher: setattr(teacher, "unit", "element"),
    "group": lambda teacher: setattr(teacher, "group", lambda name: "all"),
    "buffers": lambda teacher: setattr(teacher, "buffer_policy", "copy"),
    "smoothing": lambda teacher: setattr(teacher, "smoothing", Smoothing(0.9, 0.5)),
    "buffer momentum": lambda teacher: setattr(teacher, "smoothing", Smoothing(0.9, 0.7, buffer_momentum=0.1)),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_is_set_later_counts_from_the_next_update(setting):
    net = student()
    late, early = (Teacher(net, spatial_temporal_smoothing(0.9, 0.7)) for _ in range(2))
    late.update(net)
    early.step = 1
    SETTINGS[setting](late)
    SETTINGS[setting](early)
    for step in range(3):
        walk(net, step)
        late.update(net)
        early.update(net)
    for name, t in tensors(early.module).items():
        assert torch.equal(tensors(late.module)[name], t), name


def test_what_does_not_change_a_tensor_keeps_the_plan():
    net = student()
    teacher = Teacher(net, spatial_temporal_smoothing(0.9, 0.7))
    teacher.update(net)
    plan = teacher._plan
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.ones(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        net.requires_grad_(False).eval()
        teacher.update(net)
        net.requires_grad_(True).train()
        net.load_state_dict(student(1).state_dict())
        teacher.smoothing = Smoothing(0.5, 0.2)
        teacher.update(net)
    assert teacher._plan is plan


def test_a_plan_keeps_nothing_of_a_student_that_is_gone_and_serves_the_next():
    net = student()
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    gone = [weakref.ref(tensor) for tensor in (*net.parameters(), *net.buffers())]
    del net
    gc.collect()
    assert not any(reference() is not None for reference in gone)
    before, other = tensors(teacher.module), student(1)
    teacher.update(other)
    assert torch.equal(teacher.module.conv.weight, before["conv.weight"].lerp(other.conv.weight, 0.5))


def test_memory_of_a_kernel_is_never_reused_while_it_may_be_written_to():
    """Assigning other memory frees the old: without the kernel's hold on it a new tensor could get its address."""
    net = nn.Linear(300, 300)
    teacher = Teacher(net, temporal_moving_average(0.5))
    teacher.update(net)
    address = net.weight.data_ptr()
    net.weight.data = torch.zeros(1)
    others = [torch.zeros(300, 300) for _ in range(20)]
    assert kernels._cpu() is None or all(other.data_ptr() != address for other in others)
