"""Finding out that `torch.optim.swa_utils.update_bn` was called with a teacher, whose mode it cannot change."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def tracking(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms whose running statistics are moving averages."""
    norms = (part for part in module.modules() if isinstance(part, _BatchNorm))
    return [norm for norm in norms if norm.momentum is not None and norm.num_batches_tracked is not None]


def refuse_reset(norms: list[_BatchNorm]) -> None:
    """Refuse to use statistics that `update_bn` has reset; reads no tensor before it has set a momentum to None.

    Args:
        norms: `tracking` at the last call of `train()`, which `update_bn` calls before it sets each momentum to None.
    """
    for norm in norms:
        if norm.momentum is None and not norm.training and not norm.num_batches_tracked:
            raise ValueError(
                "the teacher's BatchNorm statistics were reset and would not be recomputed, since train() does not "
                "change a Teacher: call update_bn(loader, teacher.module)"
            )
