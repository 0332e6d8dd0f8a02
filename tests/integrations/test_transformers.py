import itertools
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spatial_ensemble import Teacher, UserError, spatial_temporal_smoothing

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from spatial_ensemble.integrations.transformers import TeacherCallback  # noqa: E402

# transformers warns of what it will change one day.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
STS = spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5)


class Network(nn.Module):
    """Keeps the weights that it was evaluated with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1))
        self.evaluated: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not self.training:
            self.evaluated.append(weights(self))
        prediction = self.layers(x)
        return {"loss": (prediction - labels).square().mean(), "logits": prediction}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(count: int) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [{"x": torch.rand(4, generator=draw), "labels": torch.rand(1, generator=draw)} for _ in range(count)]


def trainer(
    folder: Path,
    callback: transformers.TrainerCallback,
    eval_dataset: object = None,
    network: nn.Module | None = None,
    **options: object,
):
    arguments = transformers.TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_eval_batch_size=8,
        learning_rate=0.1,
        max_grad_norm=0.0,
        **({"max_steps": 8, "save_strategy": "no", "per_device_train_batch_size": 4} | options),
    )
    made = transformers.Trainer(
        network or Network(), arguments, train_dataset=rows(32), eval_dataset=eval_dataset or rows(8)
    )
    made.stepped = []
    made.create_optimizer()
    made.optimizer.register_step_post_hook(lambda *_: made.stepped.append(weights(made.model)))
    made.add_callback(callback)
    return made


def replay(students: list[dict[str, Tensor]]) -> Teacher:
    """The teacher that a plain loop gives, stepping on the same students."""
    module = Network()
    teacher = Teacher(module, STS)
    for student in students:
        module.load_state_dict(student)
        teacher.update(module)
    return teacher


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_update_for_each_optimizer_step_under_gradient_accumulation(tmp_path, accumulate):
    callback = TeacherCallback(STS)
    run = trainer(tmp_path, callback, gradient_accumulation_steps=accumulate)
    run.train()
    assert callback.teacher.step == len(run.stepped) == 8
    assert callback.teacher.fingerprint() == replay(run.stepped).fingerprint()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch_fused"])
def test_no_update_for_a_step_that_the_grad_scaler_skipped(tmp_path, optimizer):
    class Overflow(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            if state.global_step in (2, 3):
                model.layers[0].weight.grad[:] = torch.inf

    callback = TeacherCallback(STS)
    run = trainer(tmp_path, callback, optim=optimizer)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    run.add_callback(Overflow())
    run.train()
    assert run.state.global_step == 8  # the Trainer counts them all
    assert callback.teacher.step == 6
    changed = [not equal(a, b) for a, b in itertools.pairwise(run.stepped)]
    assert sum(changed) == 5  # a fused optimizer is called all the same, and changes nothing


def test_evaluations_within_training_see_the_teacher_and_training_goes_on_with_the_student(tmp_path):
    callback = TeacherCallback(STS)
    run = trainer(tmp_path, callback, eval_strategy="steps", eval_steps=4, eval_on_start=True)
    run.train()
    plain = trainer(tmp_path, transformers.TrainerCallback())
    plain.train()
    assert all(equal(a, b) for a, b in zip(run.stepped, plain.stepped, strict=True))
    assert len(run.model.evaluated) == 3
    for seen, steps in zip(run.model.evaluated, (0, 4, 8), strict=True):
        assert equal(seen, weights(replay(run.stepped[:steps]).module))
    assert equal(weights(run.model), run.stepped[-1])
    with callback.lent(run.model):
        run.evaluate()
    run.evaluate()
    assert equal(run.model.evaluated[-2], weights(callback.teacher.module))
    assert equal(run.model.evaluated[-1], run.stepped[-1])


def test_evaluations_at_the_end_of_epochs_see_the_teacher_and_training_goes_on_with_the_student(tmp_path):
    run = trainer(tmp_path, TeacherCallback(STS), eval_strategy="epoch", max_steps=16)
    run.train()
    plain = trainer(tmp_path, transformers.TrainerCallback(), max_steps=16)
    plain.train()
    assert all(equal(a, b) for a, b in zip(run.stepped, plain.stepped, strict=True))
    for seen, steps in zip(run.model.evaluated, (8, 16), strict=True):
        assert equal(seen, weights(replay(run.stepped[:steps]).module))


def test_an_evaluation_that_another_callback_calls_off_leaves_the_student_to_train_and_to_be_saved(tmp_path):
    class CallsOff(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = False

    run = trainer(tmp_path, TeacherCallback(STS), eval_strategy="steps", eval_steps=4, save_strategy="epoch")
    run.add_callback(CallsOff())
    run.train()
    plain = trainer(tmp_path, transformers.TrainerCallback())
    plain.train()
    assert run.model.evaluated == []
    assert all(equal(a, b) for a, b in zip(run.stepped, plain.stepped, strict=True))
    saved = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert equal(saved, run.stepped[-1])


@pytest.mark.parametrize("resumes", [True, False])
def test_after_an_exception_in_an_evaluation_the_same_callback_goes_on_with_the_right_student(tmp_path, resumes):
    class Begins(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            began.append((weights(run.model), weights(callback.teacher.module)))

    began, callback, whole = [], TeacherCallback(STS), TeacherCallback(STS)
    options = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 2}
    run = trainer(tmp_path / "broken", callback, **options)
    run.add_callback(Begins())
    evaluate, run.evaluate = run.evaluate, broken
    with pytest.raises(RuntimeError, match="broken"):
        run.train()
    crashed = run.stepped[3]
    assert not equal(weights(run.model), crashed)  # nobody gave the student back
    run.evaluate = evaluate
    if resumes:
        uninterrupted = trainer(tmp_path / "whole", whole, **options)
        uninterrupted.train()
        run.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-2"))
        assert all(equal(a, b) for a, b in zip(run.stepped[4:], uninterrupted.stepped[2:], strict=True))
        assert callback.teacher.fingerprint() == whole.teacher.fingerprint()
    else:
        run.train()
        assert equal(began[1][0], crashed)
        assert equal(began[1][1], crashed)


def broken(*args: object, **kwargs: object) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("trainable_only", [False, True])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(tmp_path, trainable_only):
    def network() -> Network:
        made = Network()
        made.layers[0].requires_grad_(not trainable_only)
        return made

    whole, again = (TeacherCallback(STS, seed=5, trainable_only=trainable_only) for _ in range(2))
    uninterrupted = trainer(tmp_path / "whole", whole, network=network(), save_strategy="steps", save_steps=3)
    uninterrupted.train()
    resumed = trainer(tmp_path / "whole", again, network=network())
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert len(resumed.stepped) == 5
    assert equal(resumed.stepped[-1], uninterrupted.stepped[-1])
    assert again.teacher.fingerprint() == whole.teacher.fingerprint()


@pytest.mark.parametrize(
    ("asked_in", "step", "saved", "options"),
    [
        ("on_step_end", 3, 3, {}),  # saved in on_step_begin
        ("on_step_end", 3, 3, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        ("on_step_begin", 3, 3, {}),  # in on_pre_optimizer_step
        ("on_pre_optimizer_step", 3, 4, {}),  # in on_step_end
        ("on_step_end", 8, 8, {}),  # in on_epoch_end
    ],
)
@pytest.mark.parametrize("stale", [False, True])  # over a checkpoint of an earlier run
def test_a_checkpoint_that_the_trainer_wrote_on_sigterm_is_resumed_to_the_bit(
    tmp_path, asked_in, step, saved, options, stale
):
    whole, options = TeacherCallback(STS), options | {"max_steps": 12, "enable_jit_checkpoint": True}
    uninterrupted = trainer(tmp_path / "whole", whole, **options)
    uninterrupted.train()

    def ask(args, state, control, **kwargs):
        if state.global_step == step:
            jit = next(c for c in run.callback_handler.callbacks if hasattr(c, "jit_manager"))
            jit.jit_manager.is_checkpoint_requested = True  # as three seconds after the signal

    checkpoint = tmp_path / "stopped" / f"checkpoint-{saved}"
    if stale:
        checkpoint.mkdir(parents=True)
        (checkpoint / "teacher.pt").touch()
        os.utime(checkpoint / "teacher.pt", (0, 0))
    run = trainer(tmp_path / "stopped", TeacherCallback(STS), **options)
    asks = transformers.TrainerCallback()
    setattr(asks, asked_in, ask)
    run.add_callback(asks)
    run.train()
    assert len(run.stepped) < 12
    again = TeacherCallback(STS)
    resumed = trainer(tmp_path / "stopped", again, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert len(resumed.stepped) == 12 - saved
    assert equal(resumed.stepped[-1], uninterrupted.stepped[-1])
    assert again.teacher.fingerprint() == whole.teacher.fingerprint()


def test_a_run_that_saves_nothing_leaves_the_checkpoints_of_others_alone(tmp_path):
    trainer(tmp_path, TeacherCallback(STS), save_strategy="steps", save_steps=4).train()
    half, full = (tmp_path / f"checkpoint-{step}" / "teacher.pt" for step in (4, 8))
    half.unlink()
    theirs = full.read_bytes()
    trainer(tmp_path, TeacherCallback(STS, seed=1), enable_jit_checkpoint=True).train()
    assert not half.exists()
    assert full.read_bytes() == theirs
    full.unlink()
    trainer(tmp_path, TeacherCallback(STS, seed=1)).train()
    assert not full.exists()


def test_a_save_that_is_cut_short_leaves_the_old_file_whole(tmp_path, monkeypatch):
    def cut_short(content, path):
        path.write_bytes(b"half of it")
        raise OSError("no space left")

    callback = TeacherCallback(STS)
    run = trainer(tmp_path, callback, save_strategy="steps", save_steps=8)
    run.train()
    whole = (tmp_path / "checkpoint-8" / "teacher.pt").read_bytes()
    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(OSError, match="no space"):
        callback.on_save(run.args, run.state, run.control)
    assert (tmp_path / "checkpoint-8" / "teacher.pt").read_bytes() == whole


def test_a_hyper_parameter_search_that_saves_is_refused_before_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.integrations, "hp_params", dict)  # its searchers are not installed
    callback = TeacherCallback(STS)
    run = trainer(tmp_path, callback, save_strategy="steps", save_steps=4)
    with pytest.raises(UserError, match=r"cannot be saved in a hyper-parameter search.*save_strategy='no'"):
        run.train(trial={})
    assert run.stepped == []
    run = trainer(tmp_path, callback)
    run.train(trial={})
    assert callback.teacher.step == 8


def test_an_evaluation_of_an_earlier_training_is_forgotten(tmp_path):
    class Evaluates(transformers.TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            run.evaluate(rows(8))

    callback = TeacherCallback(STS)
    trainer(tmp_path, callback, eval_strategy="steps", eval_steps=8).train()
    run = trainer(tmp_path, callback)
    run.callback_handler.callbacks.insert(0, Evaluates())  # before ours has ended
    run.train()
    assert equal(run.model.evaluated[-1], run.stepped[-1])


def test_resuming_without_the_teachers_file_is_refused(tmp_path):
    trainer(tmp_path, TeacherCallback(STS), save_strategy="steps", save_steps=4).train()
    (tmp_path / "checkpoint-4" / "teacher.pt").unlink()
    with pytest.raises(UserError, match=r"resuming at step 4.*teacher\.pt"):
        trainer(tmp_path, TeacherCallback(STS)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_several_evaluation_sets_are_refused_rather_than_half_done(tmp_path):
    sets = {"one": rows(8), "two": rows(8)}
    with pytest.raises(UserError, match=r"a second evaluation at step 4, which would see the student.*not a dict"):
        trainer(tmp_path, TeacherCallback(STS), sets, eval_strategy="steps", eval_steps=4).train()


def test_an_evaluation_that_another_callback_calls_sees_the_student(tmp_path):
    class Evaluates(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            run.evaluate(rows(8))

    run = trainer(tmp_path, TeacherCallback(STS))
    run.add_callback(Evaluates())
    run.train()
    assert equal(run.model.evaluated[-1], run.stepped[-1])


def test_the_best_model_comes_with_the_teacher_of_its_step(tmp_path):
    callback = TeacherCallback(STS)
    run = trainer(
        tmp_path,
        callback,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=4,
        save_steps=4,
        metric_for_best_model="eval_runtime_rank",
        greater_is_better=False,
        load_best_model_at_end=True,
    )
    evaluate = run.evaluate
    # Worse and worse, so that the first of two checkpoints is the best.
    run.evaluate = lambda *args, **kwargs: evaluate(*args, **kwargs) | {"eval_runtime_rank": run.state.global_step}
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-4")
    assert equal(weights(run.model), run.stepped[3])
    assert callback.teacher.fingerprint() == replay(run.stepped[:4]).fingerprint()


class Owner(Network):
    """A network that owns a teacher, as one that distils itself."""

    def __init__(self, **options: object):
        super().__init__()
        self.layers[1].requires_grad_(False)
        self.teacher = Teacher(self.layers, STS, **options)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = super().forward(x, labels)
        return {**found, "loss": found["loss"] + (found["logits"] - self.teacher(x)).square().mean()}


class UpdateOwned(transformers.TrainerCallback):
    def on_optimizer_step(self, args, state, control, model, **kwargs):
        model.teacher.update(model.layers)


@pytest.mark.parametrize("trainable_only", [False, True])
def test_a_model_that_owns_a_teacher_is_saved_and_resumed_by_the_trainer(tmp_path, trainable_only):
    whole = trainer(
        tmp_path, UpdateOwned(), network=Owner(trainable_only=trainable_only), save_strategy="steps", save_steps=4
    )
    whole.train()
    resumed = trainer(tmp_path, UpdateOwned(), network=Owner(trainable_only=trainable_only, seed=5))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.model.teacher.step == whole.model.teacher.step == 8
    assert equal(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_accelerate_saves_and_loads_the_state_of_a_model_that_owns_a_teacher(tmp_path, safe_serialization):
    accelerator = accelerate.Accelerator(cpu=True)
    model, other = (accelerator.prepare(Owner(seed=seed)) for seed in (1, 2))
    with torch.no_grad():
        model.layers[0].weight.add_(1)
    model.teacher.update(model.layers)
    folder = tmp_path / "state"
    accelerator._models = [model]
    accelerator.save_state(folder, safe_serialization=safe_serialization)
    accelerator._models = [other]
    accelerator.load_state(folder)
    assert (other.teacher.step, other.teacher.seed) == (1, 1)
    assert equal(weights(other), weights(model))


def test_there_is_nothing_to_lend_before_training():
    with pytest.raises(UserError, match="no teacher yet"):
        TeacherCallback(STS).lent(Network())
