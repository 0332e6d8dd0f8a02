"""The teacher: exact at first, right at every step, the same after resume, and unmoved by what should not move it."""

import copy
import gc
import pickle
import random
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from smoothing.students import assert_equal, student, tensors, walk
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spatial_ensemble import (
    Smoothing,
    Teacher,
    cosine,
    spatial_ensemble,
    spatial_temporal_smoothing,
    temporal_moving_average,
)
from spatial_ensemble.smoothing.units import UNITS

STS = spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.7)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("preserve_prob", [0.0, 0.5, 1.0])
def test_the_first_copy_is_exact(unit, preserve_prob):
    net = student()
    assert_equal(tensors(Teacher(net, spatial_ensemble(preserve_prob), unit=unit).module), tensors(net))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.99])
def test_updates_follow_the_reference_to_the_bit(unit, momentum):
    net = student()
    teacher = Teacher(net, Smoothing(momentum, 0.6), unit=unit, seed=5)
    expected = tensors(net)
    for step in range(6):
        walk(net, step)
        teacher.update(net)
        for name, s in tensors(net).items():
            if not s.is_floating_point():
                expected[name] = s
                continue
            nothing = torch.zeros(s.shape, dtype=torch.bool)
            # a tied weight draws under the first of its names
            draws_as = "decode.weight" if name == "encode.weight" else name
            if unit == "layer":
                draws_as = draws_as.rpartition(".")[0]
            keep = (
                nothing  # buffers are averaged at every step
                if "running" in name
                else reference.preserved(s.shape, draws_as, unit=unit, seed=5, step=step, preserve_prob=0.6)
            )
            expected[name] = reference.smooth(expected[name], s, keep, momentum)
        assert_equal(tensors(teacher.module), expected)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_the_moving_average_is_averaged_models_to_the_bit(decay):
    net = student()
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    teacher = Teacher(net, temporal_moving_average(decay))
    averaged.update_parameters(net)  # its first call copies
    for step in range(50):
        walk(net, step)
        averaged.update_parameters(net)
        teacher.update(net)
    theirs = {name: t for name, t in tensors(averaged.module).items() if t.is_floating_point()}
    assert_equal({name: t for name, t in tensors(teacher.module).items() if t.is_floating_point()}, theirs)


@pytest.mark.parametrize("unit", UNITS)
def test_with_momentum_0_every_unit_is_one_that_some_student_had(unit):
    net = student()
    teacher = Teacher(net, spatial_ensemble(0.7), unit=unit)
    seen = [tensors(net)]
    for step in range(8):
        walk(net, step)
        seen.append(tensors(net))
        teacher.update(net)
    for name, parameter in teacher.module.named_parameters():
        channels = parameter.shape[0] if parameter.ndim else 1
        units = {"layer": 1, "tensor": 1, "channel": channels, "element": parameter.numel()}[unit]
        rows = parameter.detach().reshape(units, -1)
        history = torch.stack([s[name].reshape(units, -1) for s in seen])
        assert (history == rows).all(2).any(0).all(), name
    ages = teacher.age()
    for name, parameter in teacher.module.named_parameters():
        if name in ages and ages[name].ndim == 0:  # and age says which student
            assert torch.equal(parameter, seen[len(seen) - 1 - int(ages[name])][name])


def test_with_momentum_and_preserve_prob_0_the_teacher_is_the_last_student():
    net = student()
    teacher = Teacher(net, spatial_ensemble(0.0))
    for step in range(3):
        walk(net, step)
        teacher.update(net)
    assert_equal(tensors(teacher.module), tensors(net))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("smoothing", [Smoothing(0.5, 1.0), Smoothing(1.0, 0.0), Smoothing(1.0, 0.5)])
def test_what_is_always_preserved_never_changes(unit, smoothing):
    net = student()
    start = dict(net.named_parameters())
    start = {name: p.detach().clone() for name, p in start.items()}
    teacher = Teacher(net, smoothing, unit=unit)
    with torch.no_grad():
        net.conv.weight.fill_(torch.nan)  # not even by a student gone wrong
    for step in range(5):
        walk(net, step)
        teacher.update(net)
    assert_equal({name: p.detach() for name, p in teacher.module.named_parameters()}, start)


def test_global_generators_are_untouched():
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    net = copy.deepcopy(student())
    for unit in UNITS:
        teacher = Teacher(net, STS, unit=unit)
        teacher.update(net)
        teacher.age()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()


class Reordered(nn.Module):
    """The student's tensors, registered the other way round and behind a wrapper's prefix."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.scale, self.decode, self.encode, self.bn, self.conv = net.scale, net.decode, net.encode, net.bn, net.conv


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "wrap", [Reordered, nn.DataParallel, torch.compile], ids=["reordered", "module.", "_orig_mod."]
)
def test_masks_depend_on_neither_order_nor_prefix(unit, wrap):
    net, inner = student(), student()
    wrapped_net = wrap(inner)
    plain, wrapped = Teacher(net, STS, unit=unit), Teacher(wrapped_net, STS, unit=unit)
    for step in range(4):
        walk(net, step)
        walk(inner, step)
        plain.update(net)
        wrapped.update(wrapped_net)
    assert_equal(tensors(plain.module), {name: tensors(wrapped.module)[name] for name in tensors(plain.module)})


def test_a_group_shares_its_draws():
    net = student()
    teacher = Teacher(
        net, spatial_ensemble(0.5), group=lambda name: "head" if name in ("decode.weight", "scale") else name
    )
    for step in range(20):
        walk(net, step)
        teacher.update(net)
        ages = teacher.age()
        assert ages["decode.weight"] == ages["scale"]
    assert len({int(age) for age in ages.values()}) > 1


def test_a_layer_follows_as_one_buffers_included():
    net = student()
    teacher = Teacher(net, spatial_ensemble(0.6), unit="layer", buffers="follow")
    history = [tensors(net)]
    for step in range(10):
        walk(net, step)
        history.append(tensors(net))
        teacher.update(net)
        age = int(teacher.age()["bn.weight"])
        for name in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            assert torch.equal(tensors(teacher.module)[name], history[-1 - age][name])


@pytest.mark.parametrize("policy", ["average", "copy", "keep"])
def test_buffer_policies(policy):
    net = student()
    start = tensors(net)
    teacher = Teacher(net, Smoothing(0.9, 1.0), buffers=policy)
    walk(net, 0)
    teacher.update(net)
    now, last = tensors(teacher.module), tensors(net)
    expected = {
        "average": torch.lerp(start["bn.running_mean"], last["bn.running_mean"], 1 - 0.9),
        "copy": last["bn.running_mean"],
        "keep": start["bn.running_mean"],
    }[policy]
    assert torch.equal(now["bn.running_mean"], expected)
    count = start if policy == "keep" else last
    assert torch.equal(now["bn.num_batches_tracked"], count["bn.num_batches_tracked"])


def test_a_second_student_is_not_taken_for_the_first():
    one, other = student(0), student(1)
    teacher = Teacher(one, temporal_moving_average(0.5))
    teacher.update(one)
    teacher.update(other)
    assert torch.equal(teacher.module.conv.weight, one.conv.weight.lerp(other.conv.weight, 0.5))


def test_a_unit_or_group_set_later_is_the_one_that_draws_and_is_saved():
    net = student()
    teacher, other = Teacher(net, STS), Teacher(net, STS, unit="element", group=lambda name: "all")
    for each in (teacher, other):
        each.update(net)
    teacher.unit, teacher.group = other.unit, other.group
    walk(net, 0)
    for each in (teacher, other):
        each.update(net)
    assert_equal(tensors(teacher.module), tensors(other.module))
    other.load_state_dict(teacher.state_dict())


def test_a_teacher_built_in_inference_mode_is_updated_outside_of_it():
    net = student()
    with torch.inference_mode():
        teacher = Teacher(net, temporal_moving_average(0.5))
    walk(net, 0)
    teacher.update(net)
    assert teacher.step == 1 and not teacher.module.conv.weight.equal(net.conv.weight)


CONTINUE = """
import sys, torch
sys.path.insert(0, sys.argv[3])
from smoothing.students import student, tensors, walk
from spatial_ensemble import Smoothing, Teacher, cosine
saved = torch.load(sys.argv[1], weights_only=True)
net = student(1)
teacher = Teacher(net, Smoothing(cosine(0.5, 1.0, 40), 0.6), unit=sys.argv[4])
net.load_state_dict(saved["student"])
teacher.load_state_dict(saved["teacher"])
for step in range(17, 37):
    walk(net, step)
    teacher.update(net)
torch.save(tensors(teacher.module), sys.argv[2])
"""


@pytest.mark.parametrize("unit", ["tensor", "element"])
def test_saved_at_step_17_and_loaded_in_a_new_process_it_goes_on_to_the_bit(tmp_path, unit):
    net = student()
    teacher = Teacher(net, Smoothing(cosine(0.5, 1.0, 40), 0.6), unit=unit, seed=3)
    for step in range(37):
        walk(net, step)
        teacher.update(net)
        if step == 16:
            torch.save({"student": net.state_dict(), "teacher": teacher.state_dict()}, tmp_path / "17.ckpt")
    paths = [str(tmp_path / "17.ckpt"), str(tmp_path / "37.ckpt"), str(Path(__file__).parents[1]), unit]
    subprocess.run([sys.executable, "-c", CONTINUE, *paths], check=True, timeout=120)
    assert_equal(torch.load(tmp_path / "37.ckpt", weights_only=True), tensors(teacher.module))


def test_a_state_counts_the_updates_that_were_skipped():
    net = student()
    teacher, other = (Teacher(net, STS, on_nonfinite="skip") for _ in range(2))
    net.scale.data.fill_(torch.nan)
    teacher.update(net)
    other.load_state_dict(teacher.state_dict())
    assert (other.step, other.skipped) == (teacher.step, teacher.skipped) == (0, 1)


def test_update_every_acts_at_every_nth_call():
    net = student()
    teacher = Teacher(net, spatial_ensemble(0.0), update_every=3)
    for step in range(7):
        walk(net, step)
        teacher.update(net)
        if step in (2, 5):
            held = tensors(net)
    assert_equal(tensors(teacher.module), held)
    assert teacher.step == 7
    assert set(map(int, teacher.age().values())) == {1}


def test_it_answers_in_eval_mode_without_gradients_whatever_a_parent_says():
    net = student()
    parent = nn.ModuleDict({"student": net, "teacher": Teacher(net, STS)})
    assert not any(module.training for module in parent["teacher"].modules())
    parent.train()
    assert net.training and not any(module.training for module in parent["teacher"].modules())
    parent["teacher"].module.train()  # is the user's choice
    parent.eval()
    assert parent["teacher"].module.training and not parent["teacher"].training
    parent["teacher"].module.eval()
    x = torch.randn(4, 3, 8, 8)
    before = tensors(parent["teacher"].module)
    answer = parent["teacher"](x)
    assert not answer.requires_grad
    assert torch.equal(answer, copy.deepcopy(net).eval()(x).detach())
    assert_equal(tensors(parent["teacher"].module), before)
    assert not any(p.requires_grad for p in parent["teacher"].parameters())


def test_a_ready_module_takes_on_the_students_values():
    net, ready = student(0), student(1)
    teacher = Teacher(net, STS, module=ready)
    assert teacher.module is ready
    assert_equal(tensors(ready), tensors(net))


def test_a_teacher_that_outlives_its_student_lets_go_of_its_weights():
    net = student()
    teacher = Teacher(net, STS)
    teacher.update(net)
    weight = weakref.ref(net.conv.weight)
    del net
    gc.collect()
    assert weight() is None
    assert len(teacher.age()) > 0


def test_a_seed_that_is_loaded_or_set_is_the_one_that_draws():
    net = student()
    one, loaded, set_later = (Teacher(net, STS, seed=seed) for seed in (np.int64(7), 3, 3))
    for teacher in (one, loaded, set_later):
        teacher.update(net)  # draws of the old seed, for a student that has not moved
    loaded.load_state_dict(one.state_dict())
    set_later.seed = 7
    walk(net, 0)
    for teacher in (one, loaded, set_later):
        teacher.update(net)
        assert type(teacher.seed) is int
        assert_equal(tensors(teacher.module), tensors(one.module))
        assert teacher.mask_layouts() == one.mask_layouts()


DEFAULTS = """
import torch
from torch import nn
from spatial_ensemble import Teacher, spatial_temporal_smoothing
from spatial_ensemble.smoothing import kernels
from spatial_ensemble.smoothing.units import UNITS

def moved(unit, around):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 70, 3), nn.BatchNorm2d(70), nn.Linear(9, 3000, dtype=torch.float64))
    teacher = Teacher(net, spatial_temporal_smoothing(0.9, 0.5), unit=unit)
    with around():
        for _ in range(3):
            with torch.no_grad():
                for p in net.parameters():
                    p.add_(1)
            teacher.update(net)
        ages = teacher.age()
    return [*teacher.module.state_dict().items(), *ages.items()]

def other_defaults():
    torch.set_default_dtype(torch.bfloat16)
    return torch.device("meta")

for unit in UNITS:
    found = moved(unit, other_defaults)  # first, while no kernel has been tried
    torch.set_default_dtype(torch.float32)
    kernel = kernels._cpu()
    for (name, ours), (_, theirs) in zip(found, moved(unit, lambda: torch.device("cpu")), strict=True):
        assert torch.equal(ours, theirs), (unit, name)
assert (kernel is None) == (kernels.importlib.util.find_spec("numba") is None)
"""


def test_default_dtype_and_device_are_of_no_account():
    subprocess.run([sys.executable, "-W", "error", "-c", DEFAULTS], check=True)


def test_a_copy_of_a_teacher_is_a_teacher_of_its_own():
    net = student()
    teacher = Teacher(net, STS, seed=2)
    walk(net, 0)
    teacher.update(net)
    others = [copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))]
    walk(net, 1)
    teacher.update(net)
    for other in others:
        assert other.step == 1
        other.update(net)
        assert_equal(tensors(other.module), tensors(teacher.module))
        assert other.module.scale is not teacher.module.scale


def test_a_copy_of_a_compiled_teacher_answers_by_its_own_weights():
    teacher = Teacher(student(), STS)
    teacher.compile(backend="eager")
    x = torch.ones(2, 3, 8, 8)
    answer = teacher(x)
    for other in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert torch.equal(other(x), answer)
        other.module.scale.zero_()
        assert not other(x).any() and torch.equal(teacher(x), answer)


def test_a_compiled_training_step_updates_as_a_plain_one():
    def run(wrap):
        net = student()
        teacher = Teacher(net, STS)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x):
            loss = (net(x) - teacher(x)).square().mean() + net(x).square().mean()
            loss.backward()

        step = wrap(step)
        for k in range(3):
            x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(k))
            optimizer.zero_grad()
            step(x)
            optimizer.step()
            wrap(teacher.update)(net)
        return tensors(teacher.module), net, teacher

    eager, _, _ = run(lambda f: f)
    compiled, _, teacher = run(lambda f: torch.compile(f, backend="eager"))
    assert teacher.step == 3
    assert_equal(compiled, eager)
