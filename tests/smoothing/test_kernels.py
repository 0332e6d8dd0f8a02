"""One contract for every kernel: the reference's values, to the bit, whatever the shape, layout, dtype or shard."""

import math
from functools import cache
from unittest import mock

import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smoothing.students import assert_equal, student, tensors, walk

from spatial_ensemble import Teacher, spatial_temporal_smoothing
from spatial_ensemble.smoothing import kernels
from spatial_ensemble.smoothing.draw import threshold
from spatial_ensemble.smoothing.kernels import plain
from spatial_ensemble.smoothing.units import UNITS, mask_layout, rounded, unmasked

KERNELS = ["plain", "cpu"]
MOMENTA = [0.0, 0.1, 0.5, 0.7, 0.9999, 1.0]
HALF = [torch.bfloat16, torch.float16]
SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (5, 4), (600, 3), (3, 2000), (8, 3, 3, 3)]


@pytest.fixture(params=KERNELS, autouse=True)
def kernel(request):
    """Each test runs with each kernel: plain torch alone, and whatever is chosen for the CPU."""
    if request.param == "plain":
        with mock.patch.object(kernels, "_cpu", return_value=None):
            yield request.param
    else:
        pytest.importorskip("numba")
        assert kernels._cpu() is not None
        yield request.param


def same(left, right):
    """Equal to the bit, NaN included."""
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    if left.is_complex():
        left, right = torch.view_as_real(left), torch.view_as_real(right)
    bits = integers[left.element_size()]
    return left.dtype == right.dtype and torch.equal(left.contiguous().view(bits), right.contiguous().view(bits))


def random(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(triples, step, preserve_prob, weight):
    for chosen in kernels.choose(triples) if weight else ():
        chosen.run(step, threshold(preserve_prob), weight)


preserved = cache(reference.preserved)


def check(t, s, unit, momentum, preserve_prob, step=3):
    name = "w" if unit == "layer" else "w.x"
    keep = preserved(tuple(t.shape), name, unit=unit, seed=1, step=step, preserve_prob=preserve_prob)
    expected = reference.smooth(t, s, keep, momentum)
    smooth([(t, s, mask_layout(t, "w.x", unit, seed=1))], step, preserve_prob, 1 - momentum)
    assert same(t, expected)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, unit):
    for momentum in MOMENTA:
        check(random(shape, torch.float32, 0), random(shape, torch.float32, 1), unit, momentum, 0.6)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "student_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]
)
def test_dtypes(unit, student_dtype):
    for teacher_dtype in {student_dtype, torch.complex64 if student_dtype.is_complex else torch.float32}:
        for momentum in (0.0, 0.1, 0.99):
            check(random((9, 70), teacher_dtype, 0), random((9, 70), student_dtype, 1), unit, momentum, 0.4)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("student_dtype", ["same", torch.float32])
def test_stochastic_rounding(unit, dtype, student_dtype):
    start = random((6, 190), dtype, 0)
    start[:2] *= 2.0**-15  # subnormal in float16
    start[2] = torch.finfo(dtype).max
    s = (start + random((6, 190), dtype, 1) * start * 0.02).nan_to_num()
    s = s.to(dtype if student_dtype == "same" else student_dtype)
    s[3, :50], s[4, :50] = torch.inf, torch.nan
    name = "w" if unit == "layer" else "w.x"
    for momentum in (0.0, 0.3, 0.99):
        for preserve_prob in (0.0, 0.5):
            keep = preserved((6, 190), name, unit=unit, seed=1, step=3, preserve_prob=preserve_prob)
            expected = reference.smooth_stochastic(start, s, keep, momentum, 1, "w.x", 3)
            t = start.clone()
            layout = rounded(mask_layout(t, "w.x", unit, seed=1), t, "w.x", seed=1)
            smooth([(t, s, layout)], 3, preserve_prob, 1 - momentum)
            assert torch.equal(t.isnan(), expected.isnan())
            assert same(t.nan_to_num(0), expected.nan_to_num(0))


@pytest.mark.parametrize("dtype", HALF)
def test_stochastic_rounding_does_not_depend_on_the_memory_layout(dtype):
    t, s = random((6, 5, 4, 4), dtype, 0), random((6, 5, 4, 4), dtype, 1)
    layout = rounded(mask_layout(t, "w", "tensor", seed=1), t, "w", seed=1)
    other, like = (x.to(memory_format=torch.channels_last) for x in (t.clone(), s))
    smooth([(t, s, layout)], 3, 0.0, 0.1)
    smooth([(other, like, layout)], 3, 0.0, 0.1)
    assert same(t, other)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 1),
        lambda x: x[::2],
        lambda x: x[..., 1:],
        lambda x: x.permute(3, 2, 1, 0),
    ],
    ids=["channels_last", "transposed", "strided", "sliced", "reversed"],
)
@pytest.mark.parametrize("both", [True, False])
def test_layouts(unit, layout, both):
    t, s = layout(random((6, 5, 4, 4), torch.float32, 0)), layout(random((6, 5, 4, 4), torch.float32, 1))
    check(t, s if both else s.contiguous(), unit, 0.8, 0.5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 9), max_size=4),
    unit=st.sampled_from(UNITS),
    momentum=st.floats(0, 1),
    preserve_prob=st.floats(0, 1),
    step=st.integers(0, 2**40),
    seed=st.integers(0, 1000),
)
def test_any_setting(shape, unit, momentum, preserve_prob, step, seed):
    t, s = random(shape, torch.float32, seed), random(shape, torch.float32, seed + 1)
    check(t, s, unit, momentum, threshold(preserve_prob) / 2**16, step)


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_preserved_keeps_its_very_bits(unit):
    odd = torch.tensor([-0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 3.0]).repeat(100, 1)
    spoilt = torch.full_like(odd, torch.nan)
    keep = reference.preserved(
        tuple(odd.shape), "w" if unit == "layer" else "w.x", unit=unit, seed=1, step=0, preserve_prob=0.5
    )
    t = odd.clone()
    smooth([(t, spoilt, mask_layout(t, "w.x", unit, 1))], 0, 0.5, 0.5)
    assert same(t[keep], odd[keep]) and t[~keep].isnan().all()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_a_shard_draws_its_slice_of_the_whole_mask_and_rounding(unit, dim, dtype):
    t, s = random((10, 7, 12), dtype, 0), random((10, 7, 12), dtype, 1)
    whole = mask_layout(t, "w", unit, 1)
    if dtype in HALF:
        whole = rounded(whole, t, "w", 1)
    expected = t.clone()
    smooth([(expected, s, whole)], 5, 0.5, 0.3)
    size, inner = t.shape[dim], math.prod(t.shape[dim + 1 :])
    for start, stop in ((0, 4), (4, 5), (5, size)):
        part = t.narrow(dim, start, stop - start).clone()
        layout = whole._replace(row=(stop - start) * inner, stride=size * inner, offset=start * inner)
        other = s.narrow(dim, start, stop - start).clone()
        smooth([(part, other, layout)], 5, 0.5, 0.3)
        assert same(part, expected.narrow(dim, start, stop - start))


def test_a_list_of_many_kinds_at_once():
    ts = [random((20, 30), dtype, i) for i, dtype in enumerate((torch.float32, torch.float64, torch.bfloat16) * 2)]
    ts += [random((50,), torch.float32, 9)]
    ss = [random(t.shape, torch.float32, 100 + i) for i, t in enumerate(ts)]
    layouts = [*(mask_layout(t, f"w{i}", "element", 1) for i, t in enumerate(ts[:-1])), unmasked(ts[-1])]
    alone = [t.clone() for t in ts]
    for triple in zip(alone, ss, layouts, strict=True):
        with mock.patch.object(kernels, "_cpu", return_value=None):
            smooth([triple], 2, 0.3, 0.1)
    smooth(list(zip(ts, ss, layouts, strict=True)), 2, 0.3, 0.1)
    assert all(same(t, other) for t, other in zip(ts, alone, strict=True))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_are_cut_into_the_same_bits(unit, dtype):
    """Beyond the reference's patience: chunks, threads and boundaries, against plain torch."""
    for shape in ((100_003,), (300, 1000), (2, 70_001), (20_000, 3)):
        t, s = random(shape, dtype, 0), random(shape, dtype, 1)
        layout = mask_layout(t, "w", unit, seed=1)
        if dtype in HALF:
            layout = rounded(layout, t, "w", seed=1)
        expected = t.clone()
        plain.PlainKernel([(expected, s, layout)]).run(3, threshold(0.7), 0.1)
        smooth([(t, s, layout)], 3, 0.7, 0.1)
        assert same(t, expected)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_the_fast_kernel_gives_the_plain_ones_bits_through_a_teacher(unit, dtype):
    def run(patch):
        net = student().to(dtype)
        teacher = Teacher(net, spatial_temporal_smoothing(0.9, 0.7), unit=unit, seed=4)
        with patch:
            for step in range(5):
                walk(net, step)
                teacher.update(net)
        return tensors(teacher.module)

    plain_only = mock.patch.object(kernels, "_cpu", return_value=None)
    assert_equal(run(mock.patch.object(plain, "CHUNK", 64)), run(plain_only))


def test_other_memory_behind_a_parameter_is_seen():
    """`.data = ...` swaps the memory under a parameter whose identity stays: a stale address must never be written."""
    net = student()
    teacher = Teacher(net, spatial_temporal_smoothing(0.5, 0.0))
    teacher.update(net)
    old = teacher.module.conv.weight.data
    before = old.clone()
    teacher.module.conv.weight.data = old.clone()
    net.conv.weight.data = net.conv.weight.data + 1
    teacher.update(net)
    assert torch.equal(old, before)
    assert torch.equal(teacher.module.conv.weight, before.lerp(net.conv.weight, 0.5))
