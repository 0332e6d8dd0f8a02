import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

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


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.1)),
    ],
    ids=["SGD", "SGD with momentum", "AdamW, lr in a tensor"],
)
def test_the_empty_steps_of_distributed_checkpoints_are_not_counted(make):
    student = nn.Linear(2, 1)
    teacher = Teacher(student, temporal_moving_average(0.9))
    optimizer = make(student.parameters())
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    update_after_step(optimizer, teacher, student)
    state = get_optimizer_state_dict(student, optimizer)  # before the first step: fills the state by an empty one
    assert (len(steps), teacher.step) == (1, 0)
    student(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    get_optimizer_state_dict(student, optimizer)
    set_optimizer_state_dict(student, optimizer, state)
    assert teacher.step == 1


def test_the_first_step_of_a_warm_up_from_0_and_a_step_without_gradients_are_counted():
    student = nn.Linear(2, 1)
    teacher = Teacher(student, temporal_moving_average(0.9))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    update_after_step(optimizer, teacher, student)
    student(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert teacher.step == 1
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.zero_grad()
    optimizer.step()
    student.zero_grad(set_to_none=False)
    optimizer.step()
    assert teacher.step == 3


def test_accelerates_optimizer_is_unwrapped_and_counts_its_real_steps():
    accelerate = pytest.importorskip("accelerate")
    every_other = accelerate.utils.GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_plugin=every_other)
    student = nn.Linear(2, 1)
    student, optimizer = accelerator.prepare(student, torch.optim.SGD(student.parameters(), lr=0.1))
    teacher = Teacher(student, temporal_moving_average(0.9))
    update_after_step(optimizer, teacher, student)
    for _ in range(4):
        with accelerator.accumulate(student):
            accelerator.backward(student(torch.ones(1, 2)).sum())
            optimizer.step()
            optimizer.zero_grad()
    assert teacher.step == 2
