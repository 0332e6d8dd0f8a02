"""Convert the teacher's weights from and to other packages' checkpoints.

| layout | average | student |
|---|---|---|
| `timm` | `state_dict_ema` | `state_dict` |
| `torch` | `module.*` (and `n_averaged`) | |
| `ema-pytorch` | `ema_model.*` (and `step`, `initted`) | `online_model.*` |
| `lightning` | `state_dict` | `current_model_state` |
| `mmengine` | `state_dict` | `module.*` in `ema_state_dict` (MMEngine's momentum is 1 - decay) |
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from spatial_ensemble.errors import UserError
from spatial_ensemble.smoothing.pairing import unwrap
from spatial_ensemble.smoothing.teacher import Teacher

Layout = Literal["timm", "torch", "ema-pytorch", "lightning", "mmengine"]
State = dict[str, Tensor]


def from_layout(checkpoint: Mapping[str, Any], layout: Layout) -> State:
    """Read the average from another package's checkpoint, for `teacher.module.load_state_dict`.

    Args:
        checkpoint: result of `torch.load`; for `torch` and `ema-pytorch`, the averaged model's `state_dict()`.
        layout: the package that wrote it.

    Returns:
        Name -> tensor.

    Raises:
        UserError: an unknown layout, or a checkpoint that does not have it.

    Example:
        >>> from torch.optim.swa_utils import AveragedModel
        >>> sorted(from_layout(AveragedModel(nn.Linear(2, 1)).state_dict(), "torch"))
        ['bias', 'weight']
    """
    match layout:
        case "timm":
            state = checkpoint.get("state_dict_ema", {})
        case "torch":
            state = _under("module.", checkpoint)
        case "ema-pytorch":
            state = _under("ema_model.", checkpoint)
        case "lightning":
            state = checkpoint["state_dict"] if "averaging_state" in checkpoint else {}
        case "mmengine":
            state = checkpoint["state_dict"] if "ema_state_dict" in checkpoint else {}
        case _:
            raise _unknown(layout)
    if not state:
        raise UserError(f"no average in the layout {layout!r} in a checkpoint with the keys {list(checkpoint)[:8]}")
    return dict(state)


def to_layout(teacher: Teacher, student: nn.Module, layout: Layout) -> dict[str, Any]:
    """Write the teacher, and the student where the layout has it, as the part of another package's checkpoint.

    Args:
        teacher: its module is the average, its step the count.
        student: the network being trained, perhaps wrapped by DistributedDataParallel or torch.compile.
        layout: the package that will read it.

    Returns:
        The entries of the checkpoint, to be completed by the optimizer's state and the like.

    Raises:
        UserError: an unknown layout.

    Example:
        >>> from spatial_ensemble import temporal_moving_average
        >>> student = nn.Linear(2, 1)
        >>> sorted(to_layout(Teacher(student, temporal_moving_average(0.99)), student, "torch"))
        ['module.bias', 'module.weight', 'n_averaged']
    """
    average, own, step = teacher.module.state_dict(), unwrap(student).state_dict(), torch.tensor(teacher.step)
    match layout:
        case "timm":
            return {"state_dict": own, "state_dict_ema": average}
        case "torch":
            return {"n_averaged": step, **_prefixed("module.", average)}
        case "ema-pytorch":
            online, ema = _prefixed("online_model.", own), _prefixed("ema_model.", average)
            return {"initted": torch.tensor(True), "step": step, **online, **ema}
        case "lightning":
            return {"state_dict": average, "current_model_state": own, "averaging_state": {"n_averaged": step}}
        case "mmengine":
            return {"state_dict": average, "ema_state_dict": {"steps": step, **_prefixed("module.", own)}}
        case _:
            raise _unknown(layout)


def _under(prefix: str, state: Mapping[str, Any]) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _prefixed(prefix: str, state: Mapping[str, Any]) -> State:
    return {prefix + name: value for name, value in state.items()}


def _unknown(layout: object) -> UserError:
    return UserError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}")
