"""Update the teacher from an optimizer hook, for loops that cannot tell whether a step took place."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from spatial_ensemble.smoothing.shards import least, local
from spatial_ensemble.smoothing.teacher import Teacher


def update_after_step(optimizer: Optimizer, teacher: Teacher, student: nn.Module) -> RemovableHandle:
    """Update the teacher after each optimizer step that takes place.

    Gradient accumulation is one step in several batches. Steps skipped by a GradScaler are not counted, although
    Lightning and transformers count them; a fused optimizer runs even then, and reading its `found_inf` costs a host
    sync. The empty step by which torch.distributed.checkpoint fills an optimizer's state is not counted either.

    Args:
        optimizer: trains the student; Accelerate's and Lightning's wrappers are unwrapped.
        teacher: the teacher to update.
        student: the network being trained.

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
    return call_after_step(optimizer, lambda: teacher.update(student))


def call_after_step(optimizer: Optimizer, function: Callable[[], None]) -> RemovableHandle:
    """Call a function after each optimizer step that takes place; see `update_after_step`."""

    def hook(optimizer: Optimizer, *_: object) -> None:
        overflow = getattr(optimizer, "found_inf", None)
        if (overflow is None or not overflow.item()) and not _is_empty(optimizer):
            function()

    return unwrap(optimizer).register_step_post_hook(hook)


def unwrap(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside Accelerate's and Lightning's wrappers, which take no hooks."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _is_empty(optimizer: Optimizer) -> bool:
    """Whether this was a step with learning rate 0 and gradients 0; the first step of a warm-up has gradients."""
    if not all(_is_zero(group.get("lr")) for group in optimizer.param_groups):
        return False
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    zero = not any(bool(local(p.grad).norm()) for p in parameters)
    return bool(parameters) and bool(least(int(zero), parameters))


def _is_zero(lr: object) -> bool:
    if isinstance(lr, Tensor) and lr.device.type != "cpu":
        return False  # one that a GPU computes with; reading it would cost a host sync at every step
    return isinstance(lr, float | int | Tensor) and bool(lr == 0)
