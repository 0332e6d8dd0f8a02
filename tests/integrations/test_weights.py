import pytest
import torch
from torch import nn

from spatial_ensemble import Teacher, temporal_moving_average
from spatial_ensemble.integrations.weights import Loan, copy_student


def test_a_loan_puts_the_teacher_in_and_gives_the_student_back():
    student = nn.Linear(2, 1)
    teacher = Teacher(student, temporal_moving_average(0.9))
    nn.init.constant_(student.weight, 7.0)
    taught = teacher.module.weight.clone()
    with pytest.raises(KeyError), Loan(teacher, student):
        assert torch.equal(student.weight, taught)
        raise KeyError
    assert (student.weight == 7).all() and torch.equal(teacher.module.weight, taught)
    loan = Loan(teacher, student)
    assert torch.equal(student.weight, taught)
    loan.give_back()
    assert (student.weight == 7).all()


def test_copy_student_makes_an_exact_copy_buffers_included_and_keeps_the_step():
    student = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    teacher = Teacher(student, temporal_moving_average(0.9))
    teacher.update(student)
    student(torch.rand(8, 4))
    nn.init.ones_(student[0].weight)
    copy_student(teacher, student)
    for name, value in student.state_dict().items():
        assert torch.equal(value, teacher.module.state_dict()[name]), name
    assert teacher.step == 1
