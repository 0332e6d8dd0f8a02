"""Callbacks for Lightning's Trainer. Both act once per optimizer step that really took place.

Of several optimizers that train the student, it is the last one's steps that count.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from spatial_ensemble.errors import UserError
from spatial_ensemble.integrations.optimizer import update_after_step
from spatial_ensemble.integrations.weights import Loan
from spatial_ensemble.smoothing.pairing import canonical_names
from spatial_ensemble.smoothing.rule import Smoothing
from spatial_ensemble.smoothing.teacher import Teacher

# The teacher's dtype where Lightning casts the module: the same in a resumed run, whose teacher is built before that.
_DTYPES = {"64-true": torch.float64, "bf16-true": torch.float32, "16-true": torch.float32}


class TeacherUpdate(pl.Callback):
    """Updates the teacher that a LightningModule owns; for methods in which the teacher teaches.

    The teacher is a submodule, so Lightning saves, restores and moves it together with the student. Give the
    optimizer the student's parameters, not the teacher's.

    Args:
        teacher: name of the attribute that holds the Teacher.
        student: name of the attribute that holds the network it smooths.

    Raises:
        UserError: at the start of training, when no optimizer trains the student.

    Example:
        >>> class MeanTeacher(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.student = nn.Linear(4, 2)
        ...         self.teacher = Teacher(self.student, Smoothing(momentum=0.99, preserve_prob=0.7))
        >>> trainer = pl.Trainer(callbacks=[TeacherUpdate()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, teacher: str = "teacher", student: str = "student"):
        self._teacher, self._student = teacher, student
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        teacher = pl_module.get_submodule(self._teacher)
        assert isinstance(teacher, Teacher)
        self._hook = _after_each_step(trainer.optimizers, teacher, pl_module.get_submodule(self._student))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _remove(self._hook)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        _remove(self._hook)


class WeightSmoothing(pl.Callback):
    """In the place of Lightning's `EMAWeightAveraging`: smooths the module, and validates with the smoothed weights.

    As there, validation within `fit` sees the teacher, a checkpoint's `state_dict` is the teacher's (and
    `current_model_state` the student's), and after `fit` the module holds the teacher's weights. A run resumed from a
    checkpoint goes on to the bit, draws included. Weights-only checkpoints pass callbacks by, and hold the student.
    Layers and weights that the module gets in its `setup` or `configure_model` are smoothed too; beside a student in
    half precision ("bf16-true") the teacher is kept in float32.

    Args:
        smoothing: the rule, e.g. `spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7)`.
        student: dotted name of the submodule to smooth; "" is the whole LightningModule.
        options: the other arguments of `Teacher`: unit, buffers, seed, dtype, device, ...

    Attributes:
        teacher: the Teacher, from `on_fit_start` on.

    Raises:
        UserError: at the start of training, when no optimizer trains the student.

    Example:
        >>> smoothing = WeightSmoothing(Smoothing(momentum=0.99, preserve_prob=0.7), unit="layer", seed=1)
        >>> trainer = pl.Trainer(callbacks=[smoothing], logger=False, enable_checkpointing=False)
    """

    teacher: Teacher | None = None

    def __init__(self, smoothing: Smoothing, student: str = "", **options: Any):
        self._smoothing, self._student, self._options = smoothing, student, options
        self._hook: RemovableHandle | None = None
        self._loan: Loan | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.teacher, self._loan = None, None  # layers, weights and rank 0's values may all come after this

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.teacher is None:
            self._build(trainer, pl_module)
        elif self._options.get("device") is None:
            self.teacher.to(pl_module.device)  # when it was built from a checkpoint, the module was still on the CPU

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.teacher is not None
        self._hook = _after_each_step(trainer.optimizers, self.teacher, pl_module.get_submodule(self._student))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _remove(self._hook)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lend(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            _remove(self._hook)
            self._take_back()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._lend(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._take_back()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.teacher is None else {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.teacher is not None:
            self.teacher.load_state_dict(state_dict["teacher"])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.teacher is None:
            return
        prefix = self._student + "." if self._student else ""
        own = {} if self._loan is None else self._loan.kept
        smoothed = self.teacher.module.state_dict()
        state = checkpoint["state_dict"]
        # The module's names for them, of those that its `state_dict` keeps: torch.compile puts a prefix into these, and
        # the teacher is not compiled.
        saved = {name: value for name, value in state.items() if name.startswith(prefix)}
        names = {canonical: name for name, canonical in canonical_names(saved).items()}
        smoothed_names = canonical_names({prefix + name: value for name, value in smoothed.items()})
        checkpoint["current_model_state"] = state | {prefix + name: value for name, value in own.items()}
        kept = {names.get(smoothed_names[prefix + name]): value for name, value in smoothed.items()}
        checkpoint["state_dict"] = state | {name: value for name, value in kept.items() if name is not None}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        # By now the module holds the average, be it ours or EMAWeightAveraging's; our own state is loaded after this.
        self._build(trainer, pl_module)
        if "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)

    def _build(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        student = pl_module.get_submodule(self._student)
        real = not any(tensor.is_complex() for tensor in (*student.parameters(), *student.buffers()))
        options = {"dtype": _DTYPES.get(trainer.precision) if real else None} | self._options
        self.teacher = Teacher(student, self._smoothing, **options)

    def _lend(self, pl_module: pl.LightningModule) -> None:
        assert self.teacher is not None
        self._loan = Loan(self.teacher, pl_module.get_submodule(self._student))

    def _take_back(self) -> None:
        if self._loan is not None:
            self._loan.give_back()
            self._loan = None


def _after_each_step(optimizers: list[Optimizer], teacher: Teacher, student: nn.Module) -> RemovableHandle:
    """Updates the teacher after each step of the last optimizer that trains the student."""
    trained = {id(parameter) for parameter in student.parameters()}
    ours = [o for o in optimizers if any(id(p) in trained for group in o.param_groups for p in group["params"])]
    if not ours:
        raise UserError("no optimizer trains the student: give its parameters to one in configure_optimizers")
    return update_after_step(ours[-1], teacher, student)


def _remove(hook: RemovableHandle | None) -> None:
    if hook is not None:
        hook.remove()
