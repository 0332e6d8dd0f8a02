"""Drop-in replacement for `torch.optim.swa_utils.AveragedModel`, with `smoothing` in place of `multi_avg_fn`."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from spatial_ensemble.integrations.weights import copy_student
from spatial_ensemble.smoothing.rounding import Rounding
from spatial_ensemble.smoothing.rule import Smoothing
from spatial_ensemble.smoothing.teacher import Buffers, Teacher
from spatial_ensemble.smoothing.units import Unit


class AveragedModel(Teacher):
    """A teacher with the interface of torch's `AveragedModel`; scripts with `update_bn` and `SWALR` keep working.

    As in torch, the first `update_parameters` copies, and the module follows `train()` and `eval()`. Unlike torch's, it
    starts in eval mode, pairs tensors by name, and never averages integer buffers. `load_state_dict` reads torch's
    state too; `to_layout(averaged, model, "torch")` is the state that torch's class reads.

    Args:
        model: the student.
        device: device of the teacher.
        smoothing: the rule; `temporal_moving_average(decay)` is `get_ema_multi_avg_fn(decay)`.
        use_buffers: average floating buffers; otherwise they are copied.
        unit: which weights share one draw.
        seed: seed of the draws.
        rounding: how a bfloat16 or float16 teacher is rounded: "nearest" has torch's values, and hardly moves at large
            momentum; "stochastic" moves by the right amount, see `Teacher`.

    Source: torch.optim.swa_utils, for the interface.

    Example:
        >>> from spatial_ensemble import spatial_temporal_smoothing
        >>> model = nn.Linear(4, 2)
        >>> averaged = AveragedModel(model, smoothing=spatial_temporal_smoothing(0.99, 0.7))
        >>> averaged.update_parameters(model)  # after optimizer.step()
        >>> averaged.n_averaged
        tensor(1)
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | None = None,
        *,
        smoothing: Smoothing,
        use_buffers: bool = False,
        unit: Unit = "tensor",
        seed: int = 0,
        rounding: Rounding = "nearest",
    ):
        buffers: Buffers = "average" if use_buffers else "copy"
        super().__init__(model, smoothing, unit=unit, buffers=buffers, seed=seed, device=device, rounding=rounding)
        self.training = False  # as the module is

    @property
    def n_averaged(self) -> Tensor:
        """Number of updates, the first copy included: int64 []."""
        return torch.tensor(self.step)

    def update_parameters(self, model: nn.Module) -> None:
        """Copy the model the first time, smooth it in afterwards."""
        if self.step == 0:
            copy_student(self, model)
            self.step = 1
        else:
            self.update(model)

    def age(self) -> dict[str, Tensor]:
        """Steps since each unit was last replaced or averaged; the first copy replaced all."""
        return {name: age.clamp(max=max(self.step - 1, 0)) for name, age in super().age().items()}

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the teacher's module, as torch's class does; `update_bn` needs it."""
        nn.Module.train(self, mode)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (count := state_dict.pop(prefix + "n_averaged", None)) is not None:  # written by torch's class
            state_dict[prefix + "_extra_state"] = self._state() | {"step": int(count)}
        super()._load_from_state_dict(state_dict, prefix, *args)
