"""A callback for the Trainer of Hugging Face transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spatial_ensemble.errors import UserError
from spatial_ensemble.integrations.optimizer import update_after_step
from spatial_ensemble.integrations.weights import Loan
from spatial_ensemble.smoothing.rule import Smoothing
from spatial_ensemble.smoothing.teacher import Teacher

FILE = "teacher.pt"


class TeacherCallback(TrainerCallback):
    """Keep a teacher of the model: update it, evaluate with it, save and resume it.

    The teacher is updated once per optimizer step that takes place. Evaluations during training see its weights;
    `model.safetensors` in a checkpoint is the student, `teacher.pt` beside it the teacher. After training,
    `with callback.lent(trainer.model): trainer.evaluate()` evaluates the teacher, and
    `callback.teacher.module.save_pretrained(folder)` saves it. Under `load_best_model_at_end` both are those of the
    step at which the teacher was best.

    Args:
        smoothing: the rule, e.g. `spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7)`.
        options: the other arguments of `Teacher`: unit, buffers, seed, dtype, device, rounding, ...

    Attributes:
        teacher: the Teacher, from the start of training on.

    Raises:
        UserError: a resumed checkpoint has no `teacher.pt`; a step is evaluated twice, as with a dict of evaluation
            sets (the Trainer does not tell a callback whether another evaluation follows); a hyper-parameter search
            saves checkpoints (it does not tell a callback where).

    Example:
        >>> callback = TeacherCallback(Smoothing(momentum=0.999, preserve_prob=0.5))
        >>> # Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    """

    teacher: Teacher | None = None

    def __init__(self, smoothing: Smoothing, **options: Any):
        self._smoothing, self._options = smoothing, options
        self._loan: Loan | None = None
        self._hook: RemovableHandle | None = None
        self._evaluated = -1  # step of the last evaluation with the teacher

    def lent(self, model: nn.Module) -> Loan:
        """Put the teacher's weights into the model until the end of a `with` block."""
        if self.teacher is None:
            raise UserError("there is no teacher yet: it is built when training starts")
        return Loan(self.teacher, model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._unhook()  # callbacks are not told of an exception that ended an earlier training
        if state.global_step > 0:
            self._loan = None  # the checkpoint's student is in the model already
        self._take_back()
        self._evaluated = -1
        if state.is_hyper_param_search and args.save_strategy != "no":
            raise UserError(
                "the teacher cannot be saved in a hyper-parameter search, whose folders callbacks are not told: set "
                "save_strategy='no'"
            )
        self.teacher = Teacher(kwargs["model"], self._smoothing, **self._options)
        if state.global_step > 0:
            path = _folder(args, state) / FILE
            if not path.is_file():
                raise UserError(f"resuming at step {state.global_step}, but {path} is missing: copy it there")
            self._load(path)
        self._hook = update_after_step(kwargs["optimizer"], self.teacher, kwargs["model"])
        if args.eval_on_start:
            self._loan = self.lent(kwargs["model"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._take_back()  # in case another callback cancelled the evaluation

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save_on_sigterm(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._save_on_sigterm(args, state, control)
        if control.should_evaluate:
            self._loan = self.lent(kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._take_back()  # as in on_step_begin
        self.on_step_end(args, state, control, **kwargs)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._hook is not None and self._loan is None and self._evaluated == state.global_step:
            raise UserError(
                f"a second evaluation at step {state.global_step}, which would see the student: pass the Trainer one "
                "evaluation set, not a dict, and do not call evaluate beside its own"
            )
        self._evaluated = state.global_step if self._loan is not None else -1
        self._take_back()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._take_back()  # as in on_step_begin
        if self.teacher is not None and args.should_save:
            path = _folder(args, state) / FILE
            temporary = path.with_suffix(".tmp")
            torch.save(self.teacher.state_dict(), temporary)
            temporary.replace(path)  # atomic: a killed run leaves the whole file or none

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._unhook()
        self._take_back()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(Path(state.best_model_checkpoint) / FILE)  # the Trainer has loaded its student

    def _save_on_sigterm(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Save beside a checkpoint that the Trainer wrote on SIGTERM (`enable_jit_checkpoint`), without `on_save`."""
        if not (control.should_training_stop and getattr(args, "enable_jit_checkpoint", False)):  # missing in old ones
            return
        saved, ours = _folder(args, state) / "trainer_state.json", _folder(args, state) / FILE
        if saved.is_file() and (not ours.is_file() or ours.stat().st_mtime_ns < saved.stat().st_mtime_ns):
            self.on_save(args, state, control)

    def _load(self, path: Path) -> None:
        assert self.teacher is not None
        self.teacher.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _take_back(self) -> None:
        if self._loan is not None:
            self._loan.give_back()
            self._loan = None


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
