import contextlib
import copy
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from spatial_ensemble import Smoothing, Teacher, UserError, spatial_temporal_smoothing, temporal_moving_average
from spatial_ensemble.integrations.lightning import TeacherUpdate, WeightSmoothing

# Lightning warns of a loader without worker processes, and of what it will change one day.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
STS = spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5)


class Network(pl.LightningModule):
    """Eight batches an epoch; keeps the weights that each optimizer step left, and those it was validated with.

    A batch is a function of the step, because Lightning's loader begins anew when a run is resumed within an epoch.
    """

    def __init__(self):
        super().__init__()
        self.build()
        self.stepped: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def build(self) -> None:
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def batch(self) -> Tensor:
        return torch.rand(8, 4, generator=torch.Generator().manual_seed(self.global_step))

    def training_step(self, _):
        return self.student(self.batch().to(self.dtype)).square().mean()

    def validation_step(self, batch, _):
        self.validated.append(weights(self))

    def on_validation_end(self):
        self.validated_to = weights(self)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9)
        optimizer.register_step_post_hook(lambda *_: self.stepped.append(weights(self)))
        return optimizer

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(64, 4)), batch_size=8)

    val_dataloader = train_dataloader


class LateNetwork(Network):
    """Gets its layers in a hook of Lightning's."""

    where = ""

    def __init__(self):
        super().__init__()
        del self.student

    def setup(self, stage):
        if self.where == "setup":
            self.build()

    def configure_model(self):
        if self.where == "configure_model" and not hasattr(self, "student"):
            self.build()


class TeachingNetwork(Network):
    """Has a teacher of its own, and learns from it."""

    def __init__(self, smoothing: Smoothing = STS):
        super().__init__()
        self.teacher = Teacher(self.student, smoothing)

    def training_step(self, _):
        return (self.student(self.batch()) - self.teacher(self.batch())).square().mean() + super().training_step(_)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in module.state_dict().items() if isinstance(v, Tensor) and "teacher" not in n}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trainer(tmp_path: Path, *callbacks: pl.Callback, **options) -> pl.Trainer:
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False} | options
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **options, **quiet)


def replay(initial: dict[str, Tensor], students: list[dict[str, Tensor]], smoothing: Smoothing = STS) -> Teacher:
    """The teacher that a plain loop gives, stepping on the same students."""
    module = Network()
    module.load_state_dict(initial)
    teacher = Teacher(module, smoothing)
    for student in students:
        module.load_state_dict(student)
        teacher.update(module)
    return teacher


class OverflowOnSomeSteps(MixedPrecision):
    """A GradScaler on the CPU that is made to find an overflow at the 2nd and 3rd step of an epoch of 8."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=10**9))
        self.calls = 0

    def optimizer_step(self, optimizer, model, closure, **kwargs):
        def poisoned():
            loss = closure()
            self.calls += 1
            if self.calls in (2, 3):
                for group in optimizer.param_groups:
                    group["params"][0].grad[:] = torch.inf
            return loss

        return super().optimizer_step(optimizer, model, poisoned, **kwargs)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 8), (2, 4), (3, 3)])
def test_one_update_for_each_optimizer_step_under_gradient_accumulation(tmp_path, accumulate, steps):
    model, callback = Network(), WeightSmoothing(STS)
    initial = weights(model)
    trainer(tmp_path, callback, accumulate_grad_batches=accumulate).fit(model)
    assert callback.teacher.step == len(model.stepped) == steps
    assert equal(weights(callback.teacher.module), weights(replay(initial, model.stepped).module))


@pytest.mark.parametrize("smooths", ["the module", "its own teacher"])
def test_no_update_for_a_step_that_the_grad_scaler_skipped(tmp_path, smooths):
    if smooths == "the module":
        model, callback = Network(), WeightSmoothing(STS)
    else:
        model, callback = TeachingNetwork(), TeacherUpdate()
    run = trainer(tmp_path, callback, plugins=[OverflowOnSomeSteps()])
    run.fit(model)
    teacher = callback.teacher if smooths == "the module" else model.teacher
    assert run.global_step == 8  # Lightning counts them all
    assert teacher.step == len(model.stepped) == 6


def test_validation_sees_the_teacher_and_training_goes_on_with_the_student(tmp_path):
    model, plain, callback = Network(), Network(), WeightSmoothing(STS)
    initial = weights(model)
    trainer(tmp_path, callback, max_epochs=2, val_check_interval=4).fit(model)
    trainer(tmp_path, max_epochs=2, val_check_interval=4).fit(plain)
    assert all(equal(a, b) for a, b in zip(model.stepped, plain.stepped, strict=True))
    seen = model.validated[2:]  # two batches are the sanity check, before any step
    assert equal(model.validated[0], initial)
    assert len(seen) == 4 * 8
    for check in range(4):
        teacher = weights(replay(initial, model.stepped[: 4 * (check + 1)]).module)
        assert all(equal(batch, teacher) for batch in seen[8 * check : 8 * (check + 1)])
    assert equal(model.validated_to, model.stepped[-1])  # given back when validation ends
    assert equal(weights(model), weights(callback.teacher.module))  # after fit: as with EMAWeightAveraging


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])  # of the second, Lightning casts the module late
@pytest.mark.parametrize("where", ["__init__", "setup", "configure_model"])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(tmp_path, monkeypatch, where, precision):
    monkeypatch.setattr(LateNetwork, "where", where)
    network = Network if where == "__init__" else LateNetwork
    whole, callback = network(), WeightSmoothing(STS, seed=5)
    trainer(tmp_path, callback, max_epochs=3, precision=precision).fit(whole)

    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=5, save_top_k=-1)  # in the middle of an epoch
    first = trainer(tmp_path, WeightSmoothing(STS, seed=5), keep, enable_checkpointing=True, precision=precision)
    first.fit(network())
    (saved,) = (tmp_path / "kept").glob("*step=5*")
    resumed, again = network(), WeightSmoothing(STS, seed=5)
    trainer(tmp_path, again, max_epochs=3, precision=precision).fit(resumed, ckpt_path=saved, weights_only=True)

    assert len(resumed.stepped) == len(whole.stepped) - 5
    assert equal(resumed.stepped[-1], whole.stepped[-1])
    assert again.teacher.fingerprint() == callback.teacher.fingerprint()


def test_the_checkpoint_holds_the_teacher_where_evaluation_looks_and_the_student_beside_it(tmp_path):
    model, callback = Network(), WeightSmoothing(STS, student="student")
    run = trainer(tmp_path, callback)
    run.fit(model)
    run.save_checkpoint(tmp_path / "after.ckpt")  # now the module holds the teacher's weights
    checkpoint = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert equal(checkpoint["state_dict"], {f"student.{n}": v for n, v in weights(callback.teacher.module).items()})
    assert equal(checkpoint["current_model_state"], model.stepped[-1])
    loaded = Network()
    trainer(tmp_path).validate(loaded, ckpt_path=tmp_path / "after.ckpt", verbose=False, weights_only=True)
    assert equal(weights(loaded), checkpoint["state_dict"])


def test_the_checkpoint_of_a_compiled_student_is_loaded_again(tmp_path):
    def network():
        made = Network()
        made.student = torch.compile(made.student, backend="eager")
        return made

    first, callback = network(), WeightSmoothing(STS, student="student")
    run = trainer(tmp_path, callback)
    run.fit(first)
    run.save_checkpoint(tmp_path / "last.ckpt")
    smoothed = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert smoothed.keys() == first.state_dict().keys()
    assert torch.equal(smoothed["student._orig_mod.0.weight"], callback.teacher.module[0].weight)
    again = network()
    trainer(tmp_path, WeightSmoothing(STS, student="student"), max_epochs=2).fit(
        again, ckpt_path=tmp_path / "last.ckpt"
    )
    assert len(again.stepped) == 8


def test_what_the_module_leaves_out_of_its_state_is_not_put_back(tmp_path):
    class Part(Network):
        strict_loading = False

        def state_dict(self, *args, **kwargs):
            return {n: v for n, v in super().state_dict(*args, **kwargs).items() if n.startswith("student.2")}

    module, callback = Part(), WeightSmoothing(STS)
    run = trainer(tmp_path, callback)
    run.fit(module)
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert saved.keys() == module.state_dict().keys()
    assert torch.equal(saved["student.2.weight"], callback.teacher.module.student[2].weight)
    again = WeightSmoothing(STS)
    trainer(tmp_path, again, max_epochs=1).fit(Part(), ckpt_path=tmp_path / "last.ckpt")
    assert again.teacher.fingerprint() == callback.teacher.fingerprint()


def test_a_part_called_like_a_wrapper_keeps_its_own_weights(tmp_path):
    class Named(Network):
        def build(self):
            super().build()
            self.module = nn.ModuleDict({"student": nn.Sequential(nn.Linear(4, 3))})  # module.student.0.weight

    model, callback = Named(), WeightSmoothing(STS)
    run = trainer(tmp_path, callback, max_steps=2)
    run.fit(model)
    assert equal(weights(model), weights(callback.teacher.module))
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert equal(saved, weights(callback.teacher.module))
    assert not torch.equal(saved["student.0.weight"], saved["module.student.0.weight"])


def test_a_complex_tensor_stays_complex_where_lightning_casts_the_module(tmp_path):
    class Complex(Network):
        def build(self):
            super().build()
            self.register_buffer("waves", torch.ones(2, dtype=torch.complex64))

    callback = WeightSmoothing(STS)
    trainer(tmp_path, callback, max_steps=1, precision="64-true").fit(Complex())
    assert callback.teacher.module.waves.is_complex()


@pytest.mark.parametrize("where", ["setup", "configure_model"])
def test_layers_and_weights_that_a_hook_gives_the_module_are_smoothed(tmp_path, monkeypatch, where):
    class Pretrained(LateNetwork):
        def build(self):
            super().build()
            nn.init.constant_(self.student[0].weight, 7.0)  # as if loaded

    monkeypatch.setattr(LateNetwork, "where", where)
    model, callback = Pretrained(), WeightSmoothing(temporal_moving_average(0.999))
    trainer(tmp_path, callback, max_steps=1).fit(model)
    taught, (stepped,) = weights(callback.teacher.module), model.stepped
    torch.testing.assert_close(taught["student.0.weight"], 7.0 + 0.001 * (stepped["student.0.weight"] - 7.0))
    assert taught.keys() == stepped.keys()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.float32), ("64-true", torch.float64)])
def test_where_lightning_casts_the_module_the_teacher_is_precise_be_it_new_or_resumed(tmp_path, precision, dtype):
    callback = WeightSmoothing(STS)
    run = trainer(tmp_path, callback, precision=precision, max_steps=1)
    run.fit(Network())
    assert callback.teacher.module.student[0].weight.dtype == dtype
    run.save_checkpoint(tmp_path / "one.ckpt")
    trainer(tmp_path, callback, precision=precision, max_steps=2).fit(Network(), ckpt_path=tmp_path / "one.ckpt")
    assert callback.teacher.module.student[0].weight.dtype == dtype


def test_a_checkpoint_of_lightnings_own_averaging_is_taken_over(tmp_path):
    theirs = EMAWeightAveraging(decay=0.9)
    run = trainer(
        tmp_path, theirs, ModelCheckpoint(tmp_path / "kept", every_n_train_steps=8), enable_checkpointing=True
    )
    run.fit(Network())
    (saved,) = (tmp_path / "kept").glob("*.ckpt")
    checkpoint = torch.load(saved, weights_only=True)
    model, callback = Network(), WeightSmoothing(temporal_moving_average(1.0))
    trainer(tmp_path, callback, max_epochs=2).fit(model, ckpt_path=saved, weights_only=True)
    for name, parameter in callback.teacher.module.named_parameters():
        assert torch.equal(parameter, checkpoint["state_dict"][name])
    assert not equal(checkpoint["state_dict"], checkpoint["current_model_state"])


def test_after_an_exception_in_validation_the_student_is_back(tmp_path):
    class Breaks(Network):
        def validation_step(self, batch, index):
            if self.stepped:
                raise RuntimeError("broken")

    model = Breaks()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, WeightSmoothing(STS)).fit(model)
    assert equal(weights(model), model.stepped[-1])


class AdaptedNetwork(Network):
    """Trains its last layer alone."""

    def build(self) -> None:
        super().build()
        self.student[0].requires_grad_(False)


def test_frozen_weights_that_teacher_and_student_share_are_validated_saved_and_resumed(tmp_path):
    copied, shared, again = (WeightSmoothing(STS, seed=5, trainable_only=kind) for kind in (False, True, True))
    plain, network, resumed = AdaptedNetwork(), AdaptedNetwork(), AdaptedNetwork()
    for each, callback in ((plain, copied), (network, shared)):
        fit = trainer(tmp_path, callback, max_epochs=2)
        fit.fit(each)
        assert equal(each.validated[-1], plain.validated[-1])
    assert equal(weights(network), weights(plain))
    assert "module.student.0.weight" not in shared.teacher.state_dict()
    half = trainer(tmp_path, WeightSmoothing(STS, seed=5, trainable_only=True))
    half.fit(AdaptedNetwork())
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, again, max_epochs=2).fit(resumed, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert again.teacher.fingerprint() == shared.teacher.fingerprint()
    assert equal(resumed.stepped[-1], network.stepped[-1]) and equal(weights(resumed), weights(network))


def test_a_module_with_a_teacher_of_its_own_is_updated_saved_and_resumed(tmp_path):
    whole = TeachingNetwork()
    trainer(tmp_path, TeacherUpdate(), max_epochs=2, accumulate_grad_batches=2).fit(whole)
    assert whole.teacher.step == 8

    first = trainer(tmp_path, TeacherUpdate(), max_epochs=1, accumulate_grad_batches=2)
    first.fit(TeachingNetwork())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = TeachingNetwork()
    again = trainer(tmp_path, TeacherUpdate(), max_epochs=2, accumulate_grad_batches=2)
    again.fit(resumed, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert resumed.teacher.fingerprint() == whole.teacher.fingerprint()
    assert equal(resumed.stepped[-1], whole.stepped[-1])


@pytest.mark.parametrize("smooths", ["the module", "its own teacher"])
@pytest.mark.parametrize("ends", ["at its end", "by an exception"])
def test_a_hook_does_not_outlive_its_run(tmp_path, smooths, ends):
    class Breaks(TeachingNetwork):
        def training_step(self, _):
            if ends == "by an exception" and len(self.stepped) == 2:
                raise RuntimeError("broken")
            return super().training_step(_)

    model, callback = Breaks(), WeightSmoothing(STS, student="student") if smooths == "the module" else TeacherUpdate()
    run = trainer(tmp_path, callback)
    with contextlib.nullcontext() if ends == "at its end" else pytest.raises(RuntimeError, match="broken"):
        run.fit(model)
    teacher = callback.teacher if smooths == "the module" else model.teacher
    assert teacher.step == len(model.stepped) > 0
    before = teacher.fingerprint()
    run.optimizers[0].step()
    assert teacher.fingerprint() == before


def test_of_several_optimizers_the_last_that_trains_the_student_counts(tmp_path):
    class Several(TeachingNetwork):
        """Three optimizers, of which the first steps 8 times an epoch, the second 4 and the third, on a head, 8."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 1)
            self.automatic_optimization = False

        def training_step(self, _, index):
            for number, optimizer in enumerate(self.optimizers()):
                if number != 1 or index % 2:
                    optimizer.zero_grad()
                    self.manual_backward(self.head(self.student(self.batch())).square().mean())
                    optimizer.step()

        def configure_optimizers(self):
            return [
                torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.student[0], self.student[2], self.head)
            ]

    model = Several()
    trainer(tmp_path, TeacherUpdate()).fit(model)
    assert model.teacher.step == 4


def test_a_student_that_no_optimizer_trains_is_refused(tmp_path):
    class Forgetful(Network):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(1, 1)

    with pytest.raises(UserError, match="no optimizer trains the student"):
        trainer(tmp_path, WeightSmoothing(STS, student="other")).fit(Forgetful())


def test_the_copy_is_exact_before_the_first_step(tmp_path):
    model, callback = Network(), WeightSmoothing(spatial_temporal_smoothing(0.99, 0.9))
    initial = copy.deepcopy(weights(model))
    trainer(tmp_path, callback, max_steps=0).fit(model)
    assert equal(weights(callback.teacher.module), initial)


def test_a_second_fit_begins_a_new_teacher(tmp_path):
    callback = WeightSmoothing(STS)
    trainer(tmp_path, callback).fit(Network())
    model = Network()
    initial = weights(model)
    trainer(tmp_path, callback).fit(model)
    assert callback.teacher.fingerprint() == replay(initial, model.stepped).fingerprint()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"update_every": 3},
        {"update_every": 2, "update_starting_at_step": 3},
        {"update_every": 3, "update_starting_at_epoch": 1},
        {"update_every": 0, "update_starting_at_epoch": 1},
    ],
    ids=str,
)
def test_it_acts_when_lightnings_own_averaging_acts_with_the_same_results(tmp_path, options, accumulate):
    def run(callback: pl.Callback) -> tuple[Network, dict[str, object]]:
        model = Network()
        made = trainer(tmp_path, callback, max_epochs=3, accumulate_grad_batches=accumulate)
        made.fit(model)
        made.save_checkpoint(tmp_path / "last.ckpt")
        return model, torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]

    theirs = EMAWeightAveraging(
        decay=0.9, **{"update_every_n_steps" if name == "update_every" else name: options[name] for name in options}
    )
    late = "update_starting_at_step" in options or options.get("update_every") == 0
    ours = WeightSmoothing(temporal_moving_average(0.9 if late else lambda step: 0.9 if step else 0.0), **options)
    (our_model, our_state), (their_model, their_state) = run(ours), run(theirs)
    assert ours.teacher.step == theirs._average_model.n_averaged > 0
    assert len(our_model.validated) == len(their_model.validated) == 2 + 3 * 8
    pairs = [*zip(our_model.validated, their_model.validated, strict=True), (our_state, their_state)]
    for our, their in [*pairs, (weights(our_model), weights(their_model))]:
        assert our.keys() == their.keys()
        for name in our.keys() - {"student.1.num_batches_tracked"}:  # integers, which are averaged there
            torch.testing.assert_close(our[name], their[name], msg=name)
    for step in range(8):
        assert ours.should_update(step_idx=step) == theirs.should_update(step_idx=step)
        assert ours.should_update(epoch_idx=step) == theirs.should_update(epoch_idx=step)


def test_should_update_can_be_overridden_and_a_first_update_that_comes_late_copies(tmp_path):
    class AtEpochs(WeightSmoothing):
        def should_update(self, step_idx=None, epoch_idx=None):
            return epoch_idx in (1, 3)

    model, callback = Network(), AtEpochs(temporal_moving_average(0.5))
    trainer(tmp_path, callback, max_epochs=5).fit(model)
    assert callback.teacher.step == 2
    first, second = model.stepped[2 * 8 - 1], model.stepped[4 * 8 - 1]
    for name, parameter in callback.teacher.module.named_parameters():
        torch.testing.assert_close(parameter.data, (first[name] + second[name]) / 2)


@pytest.mark.parametrize("saved_after_the_update", [True, False])
def test_resumed_at_the_end_of_an_epoch_it_updates_once_for_it(tmp_path, saved_after_the_update):
    def fit(epochs: int, resume: Path | None) -> WeightSmoothing:
        callback = WeightSmoothing(STS, update_every=0, update_starting_at_epoch=0)
        keep = ModelCheckpoint(tmp_path / str(epochs), save_on_train_epoch_end=saved_after_the_update, save_top_k=-1)
        made = trainer(tmp_path, callback, keep, max_epochs=epochs, enable_checkpointing=True)
        made.fit(Network(), ckpt_path=resume, weights_only=True)
        return callback

    whole = fit(3, None)
    assert whole.teacher.step == 3
    fit(2, None)
    (saved,) = (tmp_path / "2").glob("epoch=1*")
    assert fit(3, saved).teacher.fingerprint() == whole.teacher.fingerprint()


def test_a_checkpoint_saved_within_a_validation_holds_both_networks_and_disturbs_nothing(tmp_path):
    class Saves(Network):
        def on_validation_epoch_end(self):
            if self.stepped:
                self.trainer.save_checkpoint(tmp_path / "within.ckpt")
                self.saved_in = weights(self)

    model, callback = Saves(), WeightSmoothing(STS, student="student")
    trainer(tmp_path, callback).fit(model)
    checkpoint = torch.load(tmp_path / "within.ckpt", weights_only=True)
    assert equal(checkpoint["current_model_state"], model.stepped[-1])
    assert equal(checkpoint["state_dict"], model.saved_in) and equal(model.saved_in, weights(model))
    taught = next(state["teacher"] for state in checkpoint["callbacks"].values() if "teacher" in state)
    assert torch.equal(taught["module.0.weight"], callback.teacher.module[0].weight)
