"""What a Teacher refuses: a student that does not match, or is not finite, and bad arguments."""

import pytest
import torch
from smoothing.students import assert_equal, student, tensors, walk
from torch import nn

from spatial_ensemble import (
    Teacher,
    spatial_ensemble,
    spatial_temporal_smoothing,
)
from spatial_ensemble.smoothing import kernels

STS = spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.7)


def missing(net):
    del net.scale


def extra(net):
    net.more = nn.Linear(2, 2)


def reshaped(net):
    net.conv = nn.Conv2d(3, 9, 3)


def extra_in_a_module_that_had_none(net):
    net.encode.register_buffer("mean", torch.zeros(2))
    net.conv.add_module("adapter", nn.Linear(2, 2, bias=False))


def reshaped_in_place(net):
    net.conv.bias.data = torch.zeros(1)


def cut_in_place(net):
    net.conv.weight.data = net.conv.weight.data[:4]  # the same memory and strides


def untied(net):
    net.decode.weight = nn.Parameter(net.encode.weight.detach().clone())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "missing 'scale'"),
        (extra, "extra 'more.bias', 'more.weight'"),
        (extra_in_a_module_that_had_none, "extra 'conv.adapter.weight', 'encode.mean'"),
        (reshaped, r"'conv.*' has shape \(9,"),
        (reshaped_in_place, r"'conv.bias' has shape \(1,\)"),
        (cut_in_place, r"'conv.weight' has shape \(4, 3, 3, 3\)"),
        (untied, "'decode.weight' and 'encode.weight' are one tied tensor in the teacher, and two in the student"),
    ],
)
@pytest.mark.parametrize("seen", [False, True], ids=["new student", "student changed since"])
@pytest.mark.parametrize("kernel", ["plain", "chosen"])
def test_a_student_that_does_not_match_is_named_and_the_teacher_unchanged(spoil, message, seen, kernel, monkeypatch):
    if kernel == "plain":
        monkeypatch.setattr(kernels, "_cpu", lambda: None)
    net = student()
    teacher = Teacher(net, spatial_ensemble(0.0))
    if seen:
        teacher.update(net)
    before, step = tensors(teacher.module), teacher.step
    walk(net, 0)
    spoil(net)
    with pytest.raises(ValueError, match=message):
        teacher.update(net)
    assert_equal(tensors(teacher.module), before)
    assert teacher.step == step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "channel"}, "unit='channel', this one 'tensor'"),
        ({"buffers": "copy"}, "buffers='copy', this one 'average'"),
        ({"update_every": 2}, "update_every=2, this one 1"),
    ],
)
def test_a_state_that_would_go_on_otherwise_is_refused(options, message):
    net = student()
    state = Teacher(net, STS, **options).state_dict()
    with pytest.raises(ValueError, match=f"saved teacher has {message}"):
        Teacher(net, STS).load_state_dict(state)


def test_a_module_that_shares_a_tensor_with_the_student_is_refused():
    net, other = student(), student()
    other.conv.weight = net.conv.weight
    for module in (net, other):
        with pytest.raises(ValueError, match=r"module shares its tensor '.*' with the student"):
            Teacher(net, STS, module=module)
    assert all(parameter.requires_grad for parameter in net.parameters()) and net.training


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_nonfinite_student_leaves_the_teacher_as_it_was(policy):
    net = student()
    teacher = Teacher(net, STS, on_nonfinite=policy)
    teacher.update(net)
    before = tensors(teacher.module)
    walk(net, 0)
    with torch.no_grad():
        net.encode.weight[3, 4] = torch.inf
    if policy == "raise":
        with pytest.raises(ValueError, match=r"'decode.weight' is non-finite at step 1"):
            teacher.update(net)
    else:
        teacher.update(net)
        assert teacher.skipped == 1
    assert teacher.step == 1
    assert_equal(tensors(teacher.module), before)


@pytest.mark.parametrize("buffers", ["average", "copy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_buffers_are_searched_too(buffers, dtype):
    net = student()
    net.register_buffer("waves", torch.full((3,), 3e38, dtype=dtype))  # whose absolute value is more than float32 holds
    net.waves += 3e38j if dtype.is_complex else 0
    teacher = Teacher(net, STS, buffers=buffers, on_nonfinite="raise")
    teacher.update(net)
    net.waves[2] = torch.nan
    with pytest.raises(ValueError, match=r"'waves' is non-finite at step 1"):
        teacher.update(net)


@pytest.mark.parametrize("first", [True, False])
def test_a_frozen_parameter_is_searched_where_it_is_taken(first):
    net = student()
    net.conv.requires_grad_(False)
    net.scale.requires_grad_(False).fill_(-torch.inf)  # a mask, say: the teacher has it already
    teacher = Teacher(net, STS, on_nonfinite="raise")
    if not first:
        teacher.update(net)
    net.conv.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"'conv.weight' is non-finite"):
        teacher.update(net)
    assert teacher.module.conv.weight.isfinite().all()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(2, 2, device="meta"), "'weight' is on the meta device"),
        (nn.LazyLinear(2), "'weight' is lazy"),
        (nn.LazyBatchNorm1d(affine=False), "'running_mean' is lazy"),
    ],
)
def test_tensors_without_values_are_refused(net, message):
    with pytest.raises(ValueError, match=message):
        Teacher(net, STS)
    with pytest.raises(ValueError, match=message):
        Teacher(nn.Linear(2, 2), STS, module=net)


def test_a_dtype_that_drops_imaginary_parts_is_refused():
    net = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"imaginary part of 'weight' \(torch.complex64\)"):
        Teacher(net, STS, dtype=torch.float32)


def test_a_finite_student_is_never_taken_for_another():
    net = student().double()
    with torch.no_grad():
        net.encode.weight.fill_(1e300)  # more than float32 holds
        net.encode.weight[0, 0] = -torch.finfo(torch.float64).max
    Teacher(net, STS, on_nonfinite="raise").update(net)
    Teacher(student(), STS, on_nonfinite="raise").update(student())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "filter"}, "unit must be one of 'layer', 'tensor', 'channel', 'element', got 'filter'"),
        ({"buffers": "move"}, "buffers must be one of"),
        ({"buffers": "follow"}, "buffers='follow' needs unit='layer'"),
        ({"update_every": 0}, "update_every must be at least 1, got 0"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Teacher(student(), STS, **arguments)


def test_plain_torch_is_not_captured_where_each_replay_would_preserve_the_same(monkeypatch):
    monkeypatch.setattr(kernels, "_cpu", lambda: None)
    monkeypatch.setattr("spatial_ensemble.smoothing.kernels.plain.capturing", lambda: True)
    net = student()
    teacher, average = Teacher(net, STS), Teacher(net, spatial_ensemble(0.0))
    with pytest.raises(RuntimeError, match="plain torch cannot be captured in a CUDA graph"):
        teacher.update(net)
    average.update(net)
    assert (teacher.step, average.step) == (0, 1)


def test_a_graph_that_would_not_count_the_updates_between_is_not_captured(monkeypatch):
    net = student()
    teacher = Teacher(net, STS, update_every=2)
    before = tensors(teacher.module)
    monkeypatch.setattr("spatial_ensemble.smoothing.teacher.capturing", lambda: True)
    with pytest.raises(RuntimeError, match="update_every=2 cannot be captured in a CUDA graph"):
        teacher.update(net)
    assert_equal(tensors(teacher.module), before)
    assert teacher.step == 0
