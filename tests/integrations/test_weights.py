import copy

import pytest
import torch
from torch import nn

from spatial_ensemble import Teacher, UserError, spatial_temporal_smoothing, temporal_moving_average
from spatial_ensemble.integrations.weights import Loan, copy_student


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def moved(student: nn.Module) -> nn.Module:
    """The student a few made-up training steps later, buffers included."""
    with torch.no_grad():
        for tensor in [*student.parameters(), *student.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
            else:
                tensor.add_(3)
    return student


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_loan_holds_buffers_that_are_not_saved():
    student = nn.Module()
    student.register_buffer("scale", torch.tensor(2.0), persistent=False)
    teacher = Teacher(student, temporal_moving_average(0.5))
    student.scale.fill_(8.0)
    with Loan(teacher, student) as loan:
        assert student.scale == 2
        assert loan.kept == {}
    assert student.scale == 8


def test_a_loan_puts_the_teacher_in_and_gives_the_student_back_to_the_bit():
    student = network()
    teacher = Teacher(student, spatial_temporal_smoothing(0.9, 0.5))
    moved(student)
    teacher.update(student)
    own, where = copy.deepcopy(student.state_dict()), [p.data_ptr() for p in student.parameters()]
    with Loan(teacher, student) as loan:
        assert equal(student.state_dict(), teacher.module.state_dict())
        assert equal(loan.kept, own)
        assert not equal(student.state_dict(), own)
    assert equal(student.state_dict(), own)
    assert [p.data_ptr() for p in student.parameters()] == where  # an optimizer's references stay good


def test_a_loan_survives_tied_weights_and_an_exception():
    student = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    student[1].weight = student[0].weight
    teacher = Teacher(student, temporal_moving_average(0.9))
    own = copy.deepcopy(moved(student).state_dict())
    with pytest.raises(KeyError), Loan(teacher, student):
        assert torch.equal(student[1].weight, teacher.module[0].weight)
        raise KeyError
    assert equal(student.state_dict(), own)


def test_a_bfloat16_student_gets_the_rounded_float32_teacher_and_the_teacher_keeps_its_bits():
    student = network().bfloat16()
    teacher = Teacher(student, temporal_moving_average(0.9), dtype=torch.float32)
    teacher.update(moved(student))
    before = copy.deepcopy(teacher.module.state_dict())
    with Loan(teacher, student):
        assert torch.equal(student[0].weight, teacher.module[0].weight.bfloat16())
    assert equal(teacher.module.state_dict(), before)


def test_a_loan_keeps_apart_what_stripped_names_would_mix():
    student = nn.Module()
    student.norm, student.module = nn.Linear(2, 1), nn.Sequential()
    student.module.norm = nn.Linear(2, 1)
    teacher = Teacher(student, temporal_moving_average(0.0))
    nn.init.constant_(student.norm.weight, 1), nn.init.constant_(student.module.norm.weight, 2)
    teacher.update(student)
    lent = copy.deepcopy(student.state_dict())
    moved(student)
    with Loan(teacher, student):
        assert equal(student.state_dict(), lent)


def test_a_tensor_that_the_teacher_lacks_is_named_and_nothing_is_lent():
    student = network()
    teacher = Teacher(student, temporal_moving_average(0.9))
    moved(student).append(nn.Linear(2, 1))
    own = copy.deepcopy(student.state_dict())
    with pytest.raises(UserError, match=r"the student's tensor '3\.weight' is not in the teacher: build the teacher"):
        Loan(teacher, student)
    assert equal(student.state_dict(), own)


def test_a_loan_taken_under_inference_mode_can_be_given_back_and_the_student_trained_on():
    student = network()
    teacher = Teacher(student, temporal_moving_average(0.9))
    moved(student)
    own = copy.deepcopy(student.state_dict())
    with torch.inference_mode():
        loan = Loan(teacher, student)
    loan.give_back()
    assert equal(student.state_dict(), own)
    student(torch.rand(4, 4)).sum().backward()


def test_copy_student_makes_an_exact_copy_buffers_included_and_keeps_the_step():
    student = network()
    teacher = Teacher(student, temporal_moving_average(0.9))
    teacher.update(moved(student))
    copy_student(teacher, moved(student))
    assert equal(teacher.module.state_dict(), student.state_dict())
    assert teacher.step == 1
