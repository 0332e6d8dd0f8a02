import pytest
import torch
from torch import nn

from spatial_ensemble import Teacher, temporal_moving_average
from spatial_ensemble.integrations.optimizer import update_after_step


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_a_step_that_the_grad_scaler_skipped_or_made_void_is_none(options):
    student = nn.Linear(2, 1)
    teacher = Teacher(student, temporal_moving_average(0.9))
    optimizer = torch.optim.Adam(student.parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    update_after_step(optimizer, teacher, student)
    for factor in (1.0, torch.inf, 1.0, torch.nan):
        before, updates = student.weight.clone(), teacher.step
        optimizer.zero_grad()
        scaler.scale(student(torch.ones(1, 2)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        stepped = not torch.equal(student.weight, before)
        assert stepped == (factor == 1.0)
        assert teacher.step - updates == stepped
    assert teacher.step == 2


def test_the_handle_ends_the_updates():
    student = nn.Linear(2, 1)
    teacher = Teacher(student, temporal_moving_average(0.9))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    update_after_step(optimizer, teacher, student).remove()
    optimizer.step()
    assert teacher.step == 0
