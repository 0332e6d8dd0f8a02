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
    """Keeps a teacher of the model: updates it, evaluates with it, saves and resumes it.

    It is updated once per optimizer step that really took place. During training the Trainer's evaluations see the
    teacher's weights; the model itself, and so `model.safetensors` in a checkpoint, stays the student, and the teacher
    lies beside it in `teacher.pt`. After training, `with callback.lent(trainer.model): trainer.evaluate()` evaluates
    the teacher, and `callback.teacher.module.save_pretrained(folder)` saves it. Under `load_best_model_at_end` both are
    those of the best step, which is the teacher's best.

    Args:
        smoothing: the rule, e.g. `spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7)`.
        options: the other arguments of `Teacher`: unit, buffers, seed, dtype, device, ...

    Attributes:
        teacher: the Teacher, from the beginning of training on.

    Raises:
        UserError: a run is resumed and its checkpoint has no `teacher.pt`; or a step is evaluated twice, as with
            evaluation sets in a dict (the Trainer tells a callback when an evaluation ends, but not whether another
            follows); or a hyper-parameter search saves checkpoints (it does not tell a callback where).

    Example:
        >>> callback = TeacherCallback(Smoothing(momentum=0.999, preserve_prob=0.5))
        >>> # Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    """

    teacher: Teacher | None = None

    def __init__(self, smoothing: Smoothing, **options: Any):
        self._smoothing, self._options = smoothing, options
        self._loan: Loan | None = None
        self._hook: RemovableHandle | None = None
        self._evaluated = -1  # the step at which a loan was last taken back

    def lent(self, model: nn.Module) -> Loan:
        """The teacher's weights in the model, for the length of a `with` block."""
        if self.teacher is None:
            raise UserError("there is no teacher yet: it is built when training begins")
        return Loan(self.teacher, model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._unhook()  # an earlier training may have ended by an exception, of which no callback hears
        if state.global_step > 0:
            self._loan = None  # the checkpoint's student lies in the model already
        self._take_back()
        self._evaluated = -1
        if state.is_hyper_param_search and args.save_strategy != "no":
            raise UserError(
                "the teacher cannot be saved in a hyper-parameter search, whose folders the Trainer keeps to itself: "
                "give save_strategy='no'"
            )
        self.teacher = Teacher(kwargs["model"], self._smoothing, **self._options)
        if state.global_step > 0:
            path = _folder(args, state) / FILE
            if not path.is_file():
                raise UserError(f"resuming at step {state.global_step}, but there is no {path}: copy it there to go on")
            self._load(path)
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])  # accelerate's wrapper has no hooks
        self._hook = update_after_step(optimizer, self.teacher, kwargs["model"])
        if args.eval_on_start:
            self._loan = self.lent(kwargs["model"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._take_back()  # should another callback have called the evaluation off

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
        self._take_back()  # likewise
        self.on_step_end(args, state, control, **kwargs)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._hook is not None and self._loan is None and self._evaluated == state.global_step:
            raise UserError(
                f"a second evaluation at step {state.global_step}, which would see the student: give the Trainer one "
                "evaluation set, not a dict of them, and call no evaluate beside its own"
            )
        self._evaluated = state.global_step if self._loan is not None else -1
        self._take_back()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.teacher is not None and args.should_save:
            path = _folder(args, state) / FILE
            temporary = path.with_suffix(".tmp")
            torch.save(self.teacher.state_dict(), temporary)
            temporary.replace(path)  # in one piece: a run that is killed leaves the whole file or none

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._unhook()
        self._take_back()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(Path(state.best_model_checkpoint) / FILE)  # the Trainer has loaded the student that went with it

    def _save_on_sigterm(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Under `enable_jit_checkpoint` the Trainer saves and stops at, or just before, such an event: no `on_save`."""
        if not (control.should_training_stop and getattr(args, "enable_jit_checkpoint", False)):  # not in every version
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
