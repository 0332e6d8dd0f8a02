"""What a Teacher refuses: a student that does not match, or is not finite, and bad arguments."""

import copy
import warnings

import pytest
import torch
from smoothing.students import assert_equal, student, tensors, walk
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

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


def weight_normed() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # deprecated, and still met
        net = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)))
    net(torch.ones(1, 3))
    return net


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 3))
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


@pytest.mark.parametrize("build", [weight_normed, pruned])
def test_a_student_that_cannot_be_copied_is_refused_with_the_way_out(build):
    net = build()
    message = r"the student cannot be copied \(RuntimeError: .*Teacher\(student, \.\.\., module=second\)"
    with pytest.raises(ValueError, match=message):
        Teacher(net, STS)
    teacher = Teacher(net, spatial_ensemble(0.0), module=build())
    walk(net, 0)
    teacher.update(net)
    assert torch.equal(teacher(torch.ones(1, 3)), net(torch.ones(1, 3)))


def test_a_scripted_student_is_refused_with_the_way_out():
    net = nn.Sequential(nn.Linear(3, 3))
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated, and still met
        scripted, traced = torch.jit.script(net), torch.jit.trace(net, torch.ones(1, 3))
    for each in (scripted, traced, nn.Sequential(scripted)):
        with pytest.raises(ValueError, match=r"the student is scripted.*before torch\.jit"):
            Teacher(each, STS)
        with pytest.raises(ValueError, match="the module is scripted"):
            Teacher(net, STS, module=each)


def partition(net: nn.Module) -> None:
    """What DeepSpeed's ZeRO-3 leaves of parameters, as far as it concerns a teacher."""
    for number, parameter in enumerate(net.parameters()):
        parameter.ds_id, parameter.ds_shape = number, parameter.shape
        parameter.data = torch.empty(0)


def test_partitions_of_zero_3_are_refused_by_name():
    net = student()
    teacher = Teacher(net, STS)
    partition(net)
    with pytest.raises(ValueError, match=r"'\w+.*' has shape \(0,\) \(a partition of DeepSpeed ZeRO-3, which is not"):
        teacher.update(net)
    for options in ({}, {"module": student()}, {"trainable_only": True}):
        with pytest.raises(ValueError, match="ZeRO-3"):
            Teacher(net, STS, **options)


class Reads(TorchDispatchMode):
    """Counts reads of values, which wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_network_with_fresh_or_reset_statistics_is_used_without_reading_them(momentum):
    net = nn.Sequential(nn.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, track_running_stats=False))
    teacher = Teacher(net, STS)
    for mode in (True, False):  # as a parent does at each epoch
        teacher.train(mode)
        with Reads() as reads:
            teacher(torch.ones(2, 3))
        assert reads.count == 0
    teacher.module[0].reset_running_stats()  # nor is a reset by hand
    teacher(torch.ones(2, 3))
    teacher.module[0].momentum = None
    teacher.module.train()
    teacher(torch.ones(2, 3))
    teacher.module.eval()
    teacher(torch.ones(2, 3))


@pytest.mark.parametrize("owned", [False, True])
def test_update_bn_is_refused_on_a_teacher_and_refills_its_module(owned):
    net = student()
    teacher = Teacher(net, spatial_ensemble(0.0))
    batches = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    net(batches[0])
    teacher.update(net)
    expected = copy.deepcopy(teacher.module)
    refused = nn.Sequential(teacher) if owned else teacher
    for _ in range(2):  # and again, for statistics that are lost stay so
        with pytest.raises(ValueError, match=r"statistics were reset.*call update_bn\(loader, teacher\.module\)"):
            update_bn(batches, refused)
        with pytest.raises(ValueError, match="statistics were reset"):
            teacher(batches[0])
    update_bn(batches, teacher.module)
    update_bn(batches, expected)
    assert_equal(tensors(teacher.module), tensors(expected))
    assert torch.equal(teacher(batches[0]), expected(batches[0]))
    with Reads() as reads:
        teacher(batches[0])
    assert reads.count == 0


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
