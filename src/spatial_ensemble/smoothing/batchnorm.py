"""Finding out that `torch.optim.swa_utils.update_bn` was called with a teacher, whose mode it cannot change."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def tracking(module: nn.Module, before: list[_BatchNorm]) -> list[_BatchNorm]:
    """The BatchNorms whose running statistics are moving averages, or were in the list before.

    `update_bn` resets the statistics, calls `train()`, and then sets each momentum to None; a list made by `train()`
    holds those that it is about to change.
    """
    norms = (part for part in module.modules() if isinstance(part, _BatchNorm) and part.num_batches_tracked is not None)
    return [norm for norm in norms if norm.momentum is not None or norm in before]


def refuse_reset(norms: list[_BatchNorm]) -> None:
    """Refuse to use statistics that `update_bn` has reset; no tensor is read before a momentum is set to None.

    Args:
        norms: from `tracking`; those whose statistics have been recomputed are removed.
    """
    for norm in [norm for norm in norms if norm.momentum is None and not norm.training]:
        if not norm.num_batches_tracked:
            raise ValueError(
                "the teacher's BatchNorm statistics were reset and would not be recomputed, since train() does not "
                "change a Teacher: call update_bn(loader, teacher.module)"
            )
        norms.remove(norm)
