"""The teacher's weights in the student's place, and back."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spatial_ensemble import Teacher, spatial_temporal_smoothing, temporal_moving_average
from spatial_ensemble.smoothing import swap as swaps
from spatial_ensemble.smoothing.swap import copy_from


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def moved(student: nn.Module) -> nn.Module:
    """The student a few made-up training steps later, buffers included."""
    with torch.no_grad():
        for tensor in [*student.parameters(), *student.buffers()]:
            tensor.add_(torch.rand_like(tensor) if tensor.is_floating_point() else 3)
    return student


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pair() -> tuple[Teacher, nn.Module]:
    """A teacher and a student with other weights and buffers."""
    student = network()
    teacher = Teacher(student, spatial_temporal_smoothing(0.9, 0.5))
    teacher.update(moved(student))
    return teacher, moved(student)


def test_weights_are_exchanged_in_place_and_come_back_to_the_bit():
    teacher, student = pair()
    own, taught, where = state(student), state(teacher.module), [p.data_ptr() for p in student.parameters()]
    with teacher.swap(student):
        assert equal(state(student), taught)
        assert not equal(taught, own)
    assert equal(state(student), own)
    assert equal(state(teacher.module), taught)
    assert [p.data_ptr() for p in student.parameters()] == where  # optimizers keep their references


def test_no_second_copy_of_the_weights_is_made(monkeypatch):
    class Largest(TorchDispatchMode):
        """The largest tensor that got memory of its own."""

        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            known = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in known:
                self.numel = max(self.numel, out.numel())
            return out

    monkeypatch.setattr(swaps, "CHUNK", 64)
    student = nn.Sequential(nn.Linear(16, 48), nn.Conv1d(8, 8, 3))
    student.register_buffer("scale", torch.tensor(1.0))
    teacher = Teacher(student, temporal_moving_average(0.9))
    moved(student)
    own, taught = state(student), state(teacher.module)
    with Largest() as largest:
        swap = teacher.swap(student)
    assert equal(state(student), taught) and equal(state(teacher.module), own)
    swap.undo()
    assert equal(state(student), own)
    assert 0 < largest.numel <= 64


def test_training_between_evaluations_is_not_disturbed():
    def trained(swaps: bool) -> dict[str, torch.Tensor]:
        student = network()
        teacher = Teacher(student, spatial_temporal_smoothing(0.9, 0.5))
        optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
        draw = torch.Generator().manual_seed(0)
        for _ in range(4):
            student(torch.rand(8, 4, generator=draw)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            teacher.update(student)
            if swaps:
                with teacher.swap(student.eval()):
                    student(torch.zeros(1, 4))
                student.train()
        return state(student) | {f"teacher.{name}": value for name, value in state(teacher.module).items()}

    assert equal(trained(swaps=True), trained(swaps=False))


def test_it_ends_once_and_by_an_exception_too():
    teacher, student = pair()
    own, taught = state(student), state(teacher.module)
    with pytest.raises(KeyError), teacher.swap(student) as swap:
        raise KeyError
    swap.undo()
    assert equal(state(student), own) and equal(state(teacher.module), taught)


def test_tied_weights_are_exchanged_once_and_buffers_that_are_not_saved_too():
    student = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    student[1].weight = student[0].weight
    student.register_buffer("scale", torch.tensor(2.0), persistent=False)
    teacher = Teacher(student, temporal_moving_average(0.9))
    own = state(moved(student))
    student.scale.fill_(8.0)
    with teacher.swap(student):
        assert torch.equal(student[1].weight, student[0].weight)
        assert not torch.equal(student[1].weight, own["1.weight"])
        assert student.scale == 2
    assert equal(state(student), own) and student.scale == 8


def test_a_tensor_that_both_share_stays_shared():
    teacher, student = pair()
    teacher.module[0].weight = student[0].weight
    own = state(student)
    with teacher.swap(student):
        assert teacher.module[0].weight is student[0].weight
        assert torch.equal(student[0].weight, own["0.weight"])
        assert not torch.equal(student[2].weight, own["2.weight"])
    assert equal(state(student), own)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_precise_teacher_of_a_student_in_half_precision_comes_back_exact(dtype):
    student = network().to(dtype)
    teacher = Teacher(student, temporal_moving_average(0.9), dtype=torch.float32)
    teacher.update(moved(student))
    own, taught = state(student), state(teacher.module)
    with teacher.swap(student):
        assert torch.equal(student[0].weight, taught["0.weight"].to(dtype))
    assert equal(state(student), own) and equal(state(teacher.module), taught)


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compiled", "dp"])
def test_a_wrapped_student_answers_as_the_teacher(wrap):
    teacher, student = pair()
    student.eval()
    wrapped, x = wrap(student), torch.rand(2, 4)
    before, taught = wrapped(x), teacher(x)
    with teacher.swap(wrapped):
        assert torch.equal(wrapped(x), taught)
    assert torch.equal(wrapped(x), before)
    assert not torch.equal(before, taught)


def test_names_that_would_be_mixed_without_their_wrappers_are_kept_apart():
    student = nn.Module()
    student.norm, student.module = nn.Linear(2, 1), nn.Sequential()
    student.module.norm = nn.Linear(2, 1)
    teacher = Teacher(student, temporal_moving_average(0.0))
    teacher.update(moved(student))
    taught = state(student)
    moved(student)
    with teacher.swap(student):
        assert equal(state(student), taught)


def test_a_student_that_does_not_match_is_named_and_nothing_is_exchanged():
    teacher, student = pair()
    student.append(nn.Linear(2, 1))
    own, taught = state(student), state(teacher.module)
    with pytest.raises(ValueError, match=r"does not match the teacher: extra '3\.bias', '3\.weight'"):
        teacher.swap(student)
    assert equal(state(student), own) and equal(state(teacher.module), taught)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_begun_in_inference_mode_it_ends_outside_and_the_student_is_trained_on(dtype):
    student = network()
    teacher = Teacher(student, temporal_moving_average(0.9), dtype=dtype)
    own = state(moved(student))
    with torch.inference_mode():
        swap = teacher.swap(student)
    swap.undo()
    assert equal(state(student), own)
    student(torch.rand(4, 4)).sum().backward()


def test_copies_for_good_in_both_directions():
    teacher, student = pair()
    taught, gradients = state(teacher.module), [p.requires_grad for p in student.parameters()]
    teacher.copy_to(student)
    assert equal(state(student), taught) and equal(state(teacher.module), taught)
    assert [p.requires_grad for p in student.parameters()] == gradients
    own = copy.deepcopy(state(moved(student)))
    copy_from(teacher.module, student)
    assert equal(state(teacher.module), own)


@pytest.mark.parametrize(
    "use",
    [
        lambda teacher, student: teacher.update(student),
        lambda teacher, student: teacher(torch.zeros(2, 4)),
        lambda teacher, student: teacher.state_dict(),
        lambda teacher, student: teacher.load_state_dict(Teacher(network(), temporal_moving_average(0.9)).state_dict()),
        lambda teacher, student: teacher.fingerprint(),
        lambda teacher, student: copy.deepcopy(teacher),
        lambda teacher, student: teacher.swap(student),
        lambda teacher, student: teacher.copy_to(student),
    ],
    ids=["update", "forward", "state_dict", "load_state_dict", "fingerprint", "deepcopy", "swap", "copy_to"],
)
def test_meanwhile_the_teacher_refuses_to_be_used(use):
    teacher, student = pair()
    own, taught, step = state(student), state(teacher.module), teacher.step
    with (
        teacher.swap(student),
        pytest.raises(ValueError, match="teacher and student are swapped: call the student, or end"),
    ):
        use(teacher, student)
    assert equal(state(student), own) and equal(state(teacher.module), taught) and teacher.step == step
    teacher.update(student)


def test_a_teacher_does_not_hold_the_student_after_a_swap():
    teacher, student = pair()
    with teacher.swap(student):
        pass
    alive = weakref.ref(student)
    del student
    gc.collect()
    assert alive() is None
