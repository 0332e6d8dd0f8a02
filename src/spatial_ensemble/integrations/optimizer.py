"""The teacher's update hung onto an optimizer, for loops that do not know whether a step took place."""

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from spatial_ensemble.smoothing.teacher import Teacher


def update_after_step(optimizer: Optimizer, teacher: Teacher, student: nn.Module) -> RemovableHandle:
    """Update the teacher after each step of the optimizer that really takes place.

    Under gradient accumulation that is one step in several batches; and a GradScaler that finds an overflow skips a
    step, though Lightning and transformers count it. A fused optimizer steps even then, learning from the scaler to
    change nothing: asking it what it learned costs a host wait, as every GradScaler step of other optimizers does.

    Args:
        optimizer: trains the student.
        teacher: smooths it.
        student: the network as it is trained.

    Returns:
        A handle; its `remove()` ends the updates.

    Example:
        >>> import torch
        >>> from spatial_ensemble import temporal_moving_average
        >>> student = nn.Linear(2, 1)
        >>> teacher = Teacher(student, temporal_moving_average(0.99))
        >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        >>> handle = update_after_step(optimizer, teacher, student)
        >>> optimizer.step()
        >>> teacher.step
        1
    """

    def update(optimizer: Optimizer, *_: object) -> None:
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is None or not overflow.item():
            teacher.update(student)

    return optimizer.register_step_post_hook(update)
