"""The teacher's state is one tensor, which every format holds, and what was saved before is read."""

import re

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from smoothing.students import assert_equal, student, tensors, walk
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from spatial_ensemble import Teacher, spatial_temporal_smoothing
from spatial_ensemble.smoothing.state import unpack

STS = spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5)
OPTIONS = {"unit": "layer", "buffers": "follow", "update_every": 2}
# torch says so of a save or load by one process.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:torch.distributed is (disabled, )?unavailable or uninitialized",
    "ignore:TypedStorage is deprecated",  # by torch 2.6 of its own writer
)


class Owner(nn.Module):
    """A module that owns a student and its teacher, two updates after the start."""

    def __init__(self, seed: int = 0, **options: object):
        super().__init__()
        self.student = student(seed)
        self.teacher = Teacher(self.student, STS, seed=2**63 - 1 - seed, **options)
        self.heads = nn.Linear(2, 2)
        for step in range(2):
            walk(self.student, step)
            self.teacher.update(self.student)


def same(one: Owner, other: Owner) -> bool:
    assert_equal(tensors(one), tensors(other))
    return one.teacher._state() == other.teacher._state() and one.teacher.fingerprint() == other.teacher.fingerprint()


def test_the_format_is_pinned():
    """States that were saved must load for ever: entries may be added, and not change their meaning."""
    teacher = Owner(**OPTIONS).teacher
    teacher.skipped = 5
    state = teacher.state_dict()["_extra_state"]
    assert state.tolist() == [1, 2, 5, 2**63 - 1, 2, 0, 2, *[0] * 9]
    assert (state.dtype, state.device) == (torch.int64, torch.device("cpu"))
    for index, unit in enumerate(("layer", "tensor", "channel", "element")):
        assert Teacher(student(), STS, unit=unit).get_extra_state()[5] == index
    for index, buffers in enumerate(("average", "copy", "follow", "keep")):
        assert Teacher(student(), STS, unit="layer", buffers=buffers).get_extra_state()[6] == index


def test_a_dict_that_was_saved_before_still_loads():
    owner, other = Owner(**OPTIONS), Owner(1, **OPTIONS)
    state = owner.state_dict()
    state["teacher._extra_state"] = {"step": 2, "skipped": 0, "seed": 2**63 - 1, **OPTIONS}
    other.load_state_dict(state)
    assert same(owner, other)


@pytest.mark.parametrize("way", ["save_model", "save_file"])
@pytest.mark.parametrize("trainable_only", [False, True])
def test_a_module_that_owns_a_teacher_is_saved_as_safetensors(way, trainable_only, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")

    def build(seed: int) -> Owner:
        owner = Owner(seed)
        for each in (owner.student, owner.teacher.module):
            each.decode = nn.Identity()  # save_file refuses tied weights of any module
        owner.student.conv.requires_grad_(False)
        owner.teacher = Teacher(owner.student, STS, trainable_only=trainable_only, seed=seed)
        return owner

    owner, other = build(0), build(1)
    owner.teacher.update(owner.student)
    if way == "save_model":
        safetensors.save_model(owner, tmp_path / "file")
        safetensors.load_model(other, tmp_path / "file")
    else:
        safetensors.save_file(owner.state_dict(), tmp_path / "file")
        other.load_state_dict(safetensors.load_file(tmp_path / "file"))
    assert same(owner, other)


def test_save_model_handles_tied_weights_as_it_does_without_a_teacher(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    owner, other = Owner(**OPTIONS), Owner(1, **OPTIONS)
    safetensors.save_model(owner, tmp_path / "file")
    safetensors.load_model(other, tmp_path / "file")
    assert same(owner, other)


def test_torch_distributed_checkpoint_saves_and_loads_it(tmp_path):
    owner, other = Owner(), Owner(1)
    checkpoint.save({"teacher": owner.teacher, "student": owner.student}, checkpoint_id=tmp_path)
    checkpoint.load({"teacher": other.teacher, "student": other.student}, checkpoint_id=tmp_path)
    other.heads = owner.heads
    assert same(owner, other)


def test_a_distributed_checkpoint_with_a_dict_is_converted_by_torch(tmp_path):
    owner, other = Owner(), Owner(1)
    state = owner.teacher.state_dict()
    state["_extra_state"] = {
        "step": 2,
        "skipped": 0,
        "seed": 8,
        "unit": "tensor",
        "buffers": "average",
        "update_every": 1,
    }
    checkpoint.save({"teacher": state}, checkpoint_id=tmp_path / "folder")
    dcp_to_torch_save(tmp_path / "folder", tmp_path / "file")
    other.teacher.load_state_dict(torch.load(tmp_path / "file", weights_only=True)["teacher"])
    assert (other.teacher.step, other.teacher.seed) == (2, 8)
    assert other.teacher.fingerprint() == owner.teacher.fingerprint()


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80])
def test_a_seed_beyond_63_bits_is_refused(seed):
    message = re.escape(f"seed must be in [0, 2**63 - 1], got {seed}")
    with pytest.raises(ValueError, match=message):
        Teacher(student(), STS, seed=seed)
    teacher = Teacher(student(), STS, seed=3)
    with pytest.raises(ValueError, match=message):
        teacher.seed = seed
    assert teacher.seed == 3


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 2, "options of a later version (format 2, this version reads 1)"),
        (15, 1, "options of a later version"),
        (5, 9, "unknown unit (9)"),
        (0, 0, "not the state of a Teacher"),
    ],
)
def test_a_state_of_a_later_version_is_refused_and_the_teacher_unchanged(position, value, message):
    teacher = Owner().teacher
    state, before = teacher.state_dict(), tensors(teacher.module)
    state = {name: tensor.clone() + 1 for name, tensor in state.items()}
    state["_extra_state"] = teacher.get_extra_state()
    state["_extra_state"][position] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        teacher.load_state_dict(state)
    assert_equal(tensors(teacher.module), before)


def test_another_tensor_is_not_taken_for_a_state():
    for other in (torch.ones(16), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"not the state of a Teacher, which is int64 \[16\]"):
            unpack(other)
