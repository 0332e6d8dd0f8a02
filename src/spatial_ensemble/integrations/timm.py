"""Drop-in replacement for `timm.utils.ModelEmaV3`, with `preserve_prob`."""

import math
from typing import Any

import torch
from torch import nn

from spatial_ensemble.integrations.weights import copy_student
from spatial_ensemble.smoothing.rule import Smoothing
from spatial_ensemble.smoothing.teacher import Buffers, Teacher
from spatial_ensemble.smoothing.units import Unit


class ModelEmaV3(Teacher):
    """A teacher with the arguments and methods of timm's `ModelEmaV3`; with preserve_prob=0, with its values too.

    Only half precision differs, see `stochastic_rounding`. `load_state_dict` reads timm's state too;
    `to_layout(ema, model, "timm")["state_dict_ema"]` is what the `module` of timm's class reads.

    Args:
        model: the student.
        decay: momentum m in [0, 1].
        min_decay: least momentum under `use_warmup`.
        update_after_step: up to this step (and one more) the teacher copies the student.
        use_warmup: momentum 1 - (1 + step / warmup_gamma) ** -warmup_power, until it reaches `decay`.
        warmup_gamma: see `use_warmup`.
        warmup_power: see `use_warmup`.
        device: device of the teacher.
        dtype: dtype of the teacher's floating tensors.
        stochastic_rounding: round a half-precision teacher stochastically, by draws of our own that are the same on
            every rank and after a resume; timm rounds float16 to nearest. False: to nearest, with timm's values.
        stochastic_rounding_seed: ignored; `seed` is the seed of all draws.
        foreach: ignored; device and unit choose the kernel.
        exclude_buffers: copy floating buffers instead of averaging them.
        preserve_prob: probability p that a unit stays unchanged.
        unit: which weights share one draw.
        seed: seed of the draws.

    Source: timm (huggingface/pytorch-image-models), `timm/utils/model_ema.py`, for the signature.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> model_ema = ModelEmaV3(model, decay=0.999, preserve_prob=0.7)
        >>> model_ema.update(model, step=1)  # after optimizer.step()
        >>> logits = model_ema.module(torch.zeros(1, 4))
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        stochastic_rounding: bool = True,
        stochastic_rounding_seed: int = 0,
        foreach: bool = True,
        exclude_buffers: bool = False,
        *,
        preserve_prob: float = 0.0,
        unit: Unit = "tensor",
        seed: int = 0,
    ):
        buffers: Buffers = "copy" if exclude_buffers else "average"
        smoothing = Smoothing(self._momentum, self._preserve_prob)
        super().__init__(
            model,
            smoothing,
            unit=unit,
            buffers=buffers,
            seed=seed,
            dtype=dtype,
            device=device,
            rounding="stochastic" if stochastic_rounding else "nearest",
        )
        self.decay = decay
        self.min_decay = min_decay
        self.update_after_step = update_after_step
        self.use_warmup = use_warmup
        self.warmup_gamma = warmup_gamma
        self.warmup_power = warmup_power
        self.preserve_prob = preserve_prob
        self._counted = False  # whether `update` was given the step, as timm's warm-up needs
        Smoothing(decay, preserve_prob)  # refuse bad values here, not at the first update

    def get_decay(self, step: int | None = None) -> float:
        """Momentum at a step, counted as in timm; None: no warm-up and no delay."""
        if step is None:
            return self.decay
        step -= self.update_after_step + 1
        if step <= 0:
            return 0.0
        if not self.use_warmup:
            return self.decay
        ramp = 1 - math.pow(1 + step / self.warmup_gamma, -self.warmup_power)
        return max(min(ramp, self.decay), self.min_decay)

    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Smooth the model into the teacher.

        Args:
            model: the student.
            step: number of this update. If given, it sets the draws too, so that a run resumed from timm's own
                checkpoints, which hold nothing but the teacher's weights, continues with the right masks.
        """
        if step is not None:
            self.step = step
        self._counted = step is not None
        super().update(model)

    def set(self, model: nn.Module) -> None:
        """Make the teacher an exact copy of the model."""
        copy_student(self, model)

    def _momentum(self, step: int) -> float:
        return self.get_decay(step if self._counted else None)

    def _preserve_prob(self, step: int) -> float:
        return 0.0 if self._counted and step <= self.update_after_step + 1 else self.preserve_prob

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + "_extra_state", self._state())  # timm's class writes none
        super()._load_from_state_dict(state_dict, prefix, *args)
