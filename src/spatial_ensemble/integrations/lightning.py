"""Callbacks for Lightning's Trainer. Both act once per optimizer step that takes place.

If several optimizers train the student, the last one's steps count.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.utils.hooks import RemovableHandle

from spatial_ensemble.errors import UserError
from spatial_ensemble.integrations.optimizer import call_after_step
from spatial_ensemble.integrations.weights import Loan, copy_student
from spatial_ensemble.smoothing.pairing import canonical_names
from spatial_ensemble.smoothing.rule import Smoothing
from spatial_ensemble.smoothing.shards import is_fsdp, is_sharded, reshard
from spatial_ensemble.smoothing.teacher import Teacher

State = dict[str, Any]

# The teacher's dtype where Lightning casts the module. A resumed teacher is built before that and has to match.
_DTYPES = {"64-true": torch.float64, "bf16-true": torch.float32, "16-true": torch.float32}


class _AfterSteps(pl.Callback):
    """Calls a function after each optimizer step of a `fit`."""

    _hook: RemovableHandle | None = None

    def _call_after_steps(self, trainer: pl.Trainer, student: nn.Module, function: Callable[[], None]) -> None:
        reshard(student)  # after a forward without a backward, FSDP2's root holds gathered parameters
        trained = {id(parameter) for parameter in student.parameters()}
        ours = [
            optimizer
            for optimizer in trainer.optimizers
            if any(id(parameter) in trained for group in optimizer.param_groups for parameter in group["params"])
        ]
        if not ours:
            raise UserError("no optimizer trains the student: give its parameters to one in configure_optimizers")
        self._hook = call_after_step(ours[-1], function)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._hook is not None:
            self._hook.remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)


class TeacherUpdate(_AfterSteps):
    """Update the teacher that a LightningModule owns, for methods in which the student learns from it.

    The teacher is a submodule, so Lightning saves, restores and moves it together with the student. Give the
    optimizer the student's parameters, not the teacher's.

    Args:
        teacher: name of the attribute that holds the Teacher.
        student: name of the attribute that holds the network it smooths.

    Raises:
        UserError: no optimizer trains the student (checked when training starts).

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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        teacher, student = pl_module.get_submodule(self._teacher), pl_module.get_submodule(self._student)
        assert isinstance(teacher, Teacher)
        self._call_after_steps(trainer, student, lambda: teacher.update(student))


class WeightSmoothing(_AfterSteps):
    """Drop-in replacement for Lightning's `EMAWeightAveraging`: smooth the module, validate with the smoothed weights.

    Validation within `fit` sees the teacher, a checkpoint's `state_dict` is the teacher's (`current_model_state` the
    student's), and after `fit` the module holds the teacher's weights. A resumed run continues bit for bit, draws
    included. Weights-only checkpoints bypass callbacks and hold the student. Layers and weights created in `setup` or
    `configure_model` are smoothed too. Beside a half-precision student ("bf16-true") the teacher is kept in float32.
    Under ModelParallelStrategy (FSDP2) the teacher's copy is built by a second call of `setup` and `configure_model`,
    and the weights that Lightning does not save in shards itself are gathered on rank 0 for a checkpoint.

    The teacher starts from the initial weights and its first update smooths. Where `should_update` leaves out the first
    step, the first update copies the student instead, as every first update of `EMAWeightAveraging` does: there
    `temporal_moving_average(delayed(1, 0.999))` is `decay=0.999`.

    Args:
        smoothing: the rule, e.g. `spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7)`.
        student: dotted name of the submodule to smooth; "" is the whole LightningModule.
        update_every: update after the optimizer steps 0, n, 2n, ...; 0: after none. Schedules count updates.
        update_starting_at_step: first optimizer step, counted from 0, to update after.
        update_starting_at_epoch: update at the end of this and of each later epoch as well.
        options: the other arguments of `Teacher`: unit, buffers, seed, dtype, device, rounding, ...

    Attributes:
        teacher: the Teacher, from `on_fit_start` on. Do not use it while a validation runs: its weights are in the
            module.

    Raises:
        UserError: no optimizer trains the student (checked when training starts).

    Example:
        >>> smoothing = WeightSmoothing(Smoothing(momentum=0.99, preserve_prob=0.7), unit="layer", seed=1)
        >>> trainer = pl.Trainer(callbacks=[smoothing], logger=False, enable_checkpointing=False)
    """

    teacher: Teacher | None = None

    def __init__(
        self,
        smoothing: Smoothing,
        student: str = "",
        *,
        update_every: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **options: Any,
    ):
        self._smoothing, self._student, self._options = smoothing, student, options
        self.update_every = update_every
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch
        self._reset()

    def _reset(self) -> None:
        self.teacher = None
        self._loan: Loan | None = None
        self._trained: State = {}  # the student's last weights, for a checkpoint saved after `fit`
        self._unconfigured: pl.LightningModule | None = None

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to update after an optimizer step or at the end of an epoch; override it for another choice.

        Args:
            step_idx: optimizer step just taken, counted from 0, or None at the end of an epoch.
            epoch_idx: epoch just finished, counted from 0, or None after a step.
        """
        if step_idx is not None:
            started = step_idx >= (self.update_starting_at_step or 0)
            return started and self.update_every > 0 and step_idx % self.update_every == 0
        start = self.update_starting_at_epoch
        return epoch_idx is not None and start is not None and epoch_idx >= start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._reset()  # layers, weights and rank 0's values may all come later
            if isinstance(trainer.strategy, ModelParallelStrategy):
                self._unconfigured = deepcopy(pl_module)  # a sharded module cannot be copied

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.teacher is None:
            self._build(trainer, pl_module)
        elif self._options.get("device") is None:
            self.teacher.to(pl_module.device)  # built from a checkpoint, when the module was still on the CPU

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        student = pl_module.get_submodule(self._student)

        def update() -> None:
            if self.should_update(step_idx=trainer.global_step):  # counted up after this hook
                self._update(student)

        self._call_after_steps(trainer, student, update)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module.get_submodule(self._student))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.teacher is not None
        student = pl_module.get_submodule(self._student)
        self._trained = deepcopy(student.state_dict())
        self.teacher.copy_to(student)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._take_back()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            assert self.teacher is not None
            self._loan = Loan(self.teacher, pl_module.get_submodule(self._student))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_back()

    def state_dict(self) -> State:
        if self.teacher is None:
            return {}
        with self._returned() as keep:
            return {"teacher": _whole(keep(self.teacher.state_dict()))}

    def load_state_dict(self, state_dict: State) -> None:
        if self.teacher is not None:
            _load(self.teacher, state_dict["teacher"])

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: State) -> None:
        if self.teacher is None:
            return
        prefix = self._student + "." if self._student else ""
        state, own = checkpoint["state_dict"], self._trained
        with self._returned() as keep:
            if self._loan is not None:
                own = keep(pl_module.get_submodule(self._student).state_dict())
            smoothed = keep(self.teacher.module.state_dict())
        if not any(is_sharded(value) for value in state.values()):
            smoothed = _whole(smoothed)
        # Under the names of `checkpoint["state_dict"]`, which torch.compile prefixes; the teacher is not compiled.
        saved = {name: value for name, value in state.items() if name.startswith(prefix)}
        names = {canonical: name for name, canonical in canonical_names(saved).items()}
        smoothed_names = canonical_names({prefix + name: value for name, value in smoothed.items()})
        checkpoint["current_model_state"] = _whole(state | {prefix + name: value for name, value in own.items()})
        kept = {names.get(smoothed_names[prefix + name]): value for name, value in smoothed.items()}
        checkpoint["state_dict"] = state | {name: value for name, value in kept.items() if name is not None}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: State) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        # The module holds the average now, ours or EMAWeightAveraging's; `load_state_dict` is called after this.
        self._build(trainer, pl_module)
        if "current_model_state" in checkpoint:
            _load(pl_module, checkpoint["current_model_state"], strict=pl_module.strict_loading)

    def _build(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        student = pl_module.get_submodule(self._student)
        if self.teacher is not None:
            return copy_student(self.teacher, student)
        real = not any(tensor.is_complex() for tensor in (*student.parameters(), *student.buffers()))
        options = {"dtype": _DTYPES.get(trainer.precision) if real else None} | self._options
        if is_fsdp(student) and self._unconfigured is not None:
            options["module"] = _configured(trainer, self._unconfigured).get_submodule(self._student)
            self._unconfigured = None
        self.teacher = Teacher(student, self._smoothing, **options)

    def _update(self, student: nn.Module) -> None:
        assert self.teacher is not None
        if self.teacher.step == 0 and not self.should_update(step_idx=0):
            copy_student(self.teacher, student)  # the initial weights are stale by now
            self.teacher.step = 1
        else:
            self.teacher.update(student)

    def _take_back(self) -> None:
        if self._loan is not None:
            self._loan.give_back()
            self._loan = None

    @contextmanager
    def _returned(self) -> Iterator[Callable[[State], State]]:
        """Interrupt a loan; yields a function that copies a state where it would not outlast the interruption."""
        if (loan := self._loan) is None:
            yield dict
            return
        loan.give_back()
        try:
            yield deepcopy
        finally:
            self._loan = Loan(loan.teacher, loan.student)


def _configured(trainer: pl.Trainer, module: pl.LightningModule) -> pl.LightningModule:
    """A copy of the module in training, layers and shards included; its values are overwritten by the student's."""
    device = trainer.strategy.root_device
    module.trainer = trainer
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        trainer.strategy.tensor_init_context(),
        trainer.precision_plugin.module_init_context(),
    ):
        module.setup("fit")
        module.configure_model()
    module.trainer = None
    return module.to_empty(device=device) if any(p.is_meta for p in module.parameters()) else module.to(device)


def _whole(state: State) -> State:
    """Shards gathered to rank 0, which saves everything but the module's own `state_dict`; a collective if any is."""
    if not any(map(is_sharded, state.values())):
        return state
    whole = {name: value.full_tensor().cpu() if is_sharded(value) else value for name, value in state.items()}
    return whole if dist.get_rank() == 0 else {}


def _load(module: nn.Module, state: State, strict: bool = True) -> None:
    if is_fsdp(module):
        set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True, strict=strict))
    else:
        module.load_state_dict(state, strict=strict)
