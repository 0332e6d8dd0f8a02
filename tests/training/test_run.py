"""The loop: what it writes, that it resumes to the bit, and that it refuses what it cannot do."""

import csv
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pytest
import torch
from PIL import Image
from runs import SHORT, Killed, assert_equal, kill_at, without_time

from spatial_ensemble import UserError, cli
from spatial_ensemble.data.sources import load
from spatial_ensemble.methods.fixmatch import FixMatch
from spatial_ensemble.smoothing.state import unpack
from spatial_ensemble.training import checkpoint, processes
from spatial_ensemble.training.build import build_method, describe
from spatial_ensemble.training.config import Config, read_yaml
from spatial_ensemble.training.prepare import check
from spatial_ensemble.training.run import train

DINO = {"method": "dino", "labels": None, "network": "small", "local_crops": 1}


class Rigid(torch.nn.Sequential):
    """A network for images of one size."""

    def __init__(self, channels, size):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(channels * size**2, 4))
        self.num_features = 4


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "run"
    return train(SHORT, out, progress=False)


def test_a_run_writes_its_configuration_log_and_checkpoint(straight):
    out = straight.checkpoint.parent
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "last.ckpt", "log.csv", "tensorboard"]
    assert Config.from_dict(read_yaml(out / "config.yaml")) == SHORT.replace(network="small")
    rows = list(csv.DictReader((out / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert [float(row["teacher_accuracy"]) for row in rows] == [row["teacher_accuracy"] for row in straight.history]
    assert straight.teacher_accuracy == straight.history[-1]["teacher_accuracy"]
    assert straight.history[-1]["loss"] < straight.history[0]["loss"]
    content = checkpoint.load(straight.checkpoint)
    assert content["step"] == unpack(content["teacher"]["_extra_state"])["step"] == 30
    assert content["data"]["classes"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("killed_at, checkpoint_every", [(17, 17), (20, 7), (3, 5)])
def test_killed_and_resumed_is_uninterrupted_to_the_bit(straight, tmp_path, killed_at, checkpoint_every):
    out = tmp_path / "run"
    config = SHORT.replace(checkpoint_every=checkpoint_every)
    with pytest.raises(Killed):
        train(config, out, progress=False, on_step=kill_at(killed_at))
    torch.manual_seed(0)  # whatever state the new process has
    result = train(config, out, resume=True, progress=False)
    assert result.steps_done == 30 - killed_at // checkpoint_every * checkpoint_every
    first, second = without_time(straight.checkpoint), without_time(result.checkpoint)
    assert first["config"].pop("checkpoint_every") != second["config"].pop("checkpoint_every")
    assert_equal(first, second)
    assert (out / "log.csv").read_bytes() == (straight.checkpoint.parent / "log.csv").read_bytes()
    assert result.history == straight.history


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(straight, tmp_path):
    torch.manual_seed(5)
    again = train(SHORT, tmp_path / "again", progress=False)
    assert_equal(without_time(straight.checkpoint), without_time(again.checkpoint))
    other = checkpoint.load(train(SHORT.replace(steps=1, seed=1), tmp_path / "other", progress=False).checkpoint)
    same = checkpoint.load(train(SHORT.replace(steps=1), tmp_path / "same", progress=False).checkpoint)
    weights = [name for name, value in same["method"].items() if value.ndim > 1]
    assert weights
    assert all(not torch.equal(same["method"][name], other["method"][name]) for name in weights)


def test_smoothings_of_one_seed_differ_in_the_teacher_alone(tmp_path):
    """With the student labelling, and so no way from the teacher back, the students are equal to the bit."""
    config = SHORT.replace(steps=5, labels_from="student")
    paths = [
        train(config.replace(smoothing=name), tmp_path / name, progress=False).checkpoint for name in ("sts", "tma")
    ]
    sts, tma = (checkpoint.load(path) for path in paths)
    assert_equal(sts["method"], tma["method"])
    assert any(
        not torch.equal(value, tma["teacher"][name]) for name, value in sts["teacher"].items() if "weight" in name
    )


def test_training_leaves_the_global_generator_alone(tmp_path):
    before = torch.random.get_rng_state()
    train(SHORT.replace(steps=1), tmp_path / "run", progress=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_finished_run_is_left_as_it_is(straight):
    before = {path: path.read_bytes() for path in straight.checkpoint.parent.iterdir() if path.is_file()}
    result = train(SHORT, straight.checkpoint.parent, resume=True, progress=False)
    assert result.steps_done == 0
    assert result.history == straight.history
    assert before == {path: path.read_bytes() for path in before}


def test_more_steps_need_a_schedule_that_was_not_laid_over_the_whole_run(straight, tmp_path):
    with pytest.raises(UserError, match="has --steps 30, not 40: its schedule depends on the 30 steps"):
        train(SHORT.replace(steps=40), straight.checkpoint.parent, resume=True, progress=False)
    constant = SHORT.replace(lr_schedule="constant", steps=4, eval_every=2)
    train(constant, tmp_path / "run", progress=False)
    longer = train(constant.replace(steps=6), tmp_path / "run", resume=True, progress=False)
    whole = train(constant.replace(steps=6), tmp_path / "whole", progress=False)
    assert longer.steps_done == 2
    assert_equal(without_time(longer.checkpoint), without_time(whole.checkpoint))
    with pytest.raises(UserError, match="has trained 6 steps already"):
        train(constant.replace(steps=5), tmp_path / "run", resume=True, progress=False)


def test_a_run_is_resumed_as_it_was_configured(straight):
    for change, message in (
        ({"lr": 0.1}, r"has --lr 0.03, not 0.1"),
        ({"unlabelled_ratio": 2}, "has --unlabelled-ratio 1, not 2"),
        ({"image_size": 16}, "has --image-size None, not 16"),
    ):
        with pytest.raises(UserError, match=message):
            train(SHORT.replace(**change), straight.checkpoint.parent, resume=True, progress=False)


def test_options_that_were_not_given_are_those_by_default(straight, tmp_path, capsys):
    """From Python, from the command line, and in a run of before there was such an option or setting."""
    out = straight.checkpoint.parent
    assert train(SHORT, out, resume=True, progress=False).steps_done == 0
    assert cli.main(["train", "--resume", "--out", str(out)]) == 0
    assert "is finished: no step is left" in capsys.readouterr().out
    content = checkpoint.load(straight.checkpoint)
    for name in ("format", "seconds"):
        content.pop(name)
    for name in ("labelled_apart", "clip_grad"):
        del content["config"][name]
    old = tmp_path / "old"
    old.mkdir()
    checkpoint.save(old / "last.ckpt", content | {"seconds": 0.0})
    assert train(SHORT, old, resume=True, progress=False).steps_done == 0
    with pytest.raises(UserError, match="has --labelled-apart False, not True"):
        train(SHORT.replace(labelled_apart=True), old, resume=True, progress=False)


def test_a_run_may_end_where_it_was_interrupted(tmp_path):
    """It is then measured there, as a run of so many steps is."""
    config = SHORT.replace(lr_schedule="constant", checkpoint_every=3)
    whole = train(config.replace(steps=3), tmp_path / "whole", progress=False)
    with pytest.raises(Killed):
        train(config, tmp_path / "run", progress=False, on_step=kill_at(4))
    ended = train(config.replace(steps=3), tmp_path / "run", resume=True, progress=False)
    assert (ended.steps_done, ended.history) == (0, whole.history)
    assert_equal(without_time(ended.checkpoint), without_time(whole.checkpoint))
    assert (tmp_path / "run" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


def test_what_killed_writes_left_is_cleared_away(tmp_path):
    for name in (".last.ckpt.7.tmp", ".config.yaml.8.tmp", ".log.csv.9.tmp", ".mine.tmp"):
        (tmp_path / name).touch()
    train(SHORT.replace(steps=1), tmp_path, progress=False)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [".mine.tmp", "config.yaml", "last.ckpt", "log.csv", "tensorboard"]


def test_a_folder_that_holds_a_run_is_not_written_to(straight):
    out = straight.checkpoint.parent
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="already holds a run"):
        train(SHORT, out, progress=False)
    assert before == {path: path.read_bytes() for path in before}


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(UserError, match="there is no run in"):
        train(SHORT, tmp_path, resume=True, progress=False)


def test_a_run_killed_before_its_first_checkpoint_begins_again(straight, tmp_path):
    with pytest.raises(Killed):
        train(SHORT, tmp_path / "run", progress=False, on_step=kill_at(2))
    result = train(SHORT, tmp_path / "run", resume=True, progress=False)
    assert_equal(without_time(straight.checkpoint), without_time(result.checkpoint))


def test_what_is_not_known_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "launch", None)  # which takes seconds
    for change in ({"method": "nothing"}, {"data": "nothing"}, {"data": "folder", "path": str(tmp_path / "nothing")}):
        with pytest.raises(UserError, match="nothing"):
            train(SHORT.replace(**change), tmp_path / "run", progress=False)


def test_what_cannot_be_trained_leaves_no_trace(tmp_path):
    for change, message in (
        ({"labels": 25}, "25 labels cannot be shared out evenly"),
        ({"method": "nothing"}, "'nothing' is not known"),
        ({"network": "nothing"}, "'nothing' is not known"),
        ({"data": "nothing"}, "unknown data set 'nothing'"),
        ({"treshold": 0.5}, "fixmatch has no option 'treshold'"),
        ({"threshold": 1.5}, "threshold 1.5"),
        (DINO | {"image_size": 2}, "the view 'dino_local' has 4 x 4 pixels, the images have 2 x 2"),
        (
            DINO | {"network": f"{__name__}.Rigid"},
            "test_run.Rigid does not take the 4 x 4 pixels of the view 'dino_local'",
        ),
        ({"method": "linear"}, "linear needs pretrained weights: pass --init FILE"),
    ):
        with pytest.raises(UserError, match=message):
            train(SHORT.replace(**change), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("eval_every", [10, 30])
def test_a_loss_that_is_not_finite_ends_the_run_and_takes_no_checkpoints_place(tmp_path, eval_every):
    config = SHORT.replace(lr=1e30, eval_every=eval_every, checkpoint_every=1)
    with pytest.raises(UserError, match=r"the loss is non-finite between steps 0 and .*: lower --lr, in another --out"):
        train(config, tmp_path / "run", progress=False)
    kept = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert 0 < kept["step"] < eval_every
    assert kept["running"]["loss"][0].isfinite()


def test_bfloat16_trains_with_weights_in_float32(tmp_path):
    config = SHORT.replace(steps=2, precision="bf16-mixed")
    content = checkpoint.load(train(config, tmp_path / "run", progress=False).checkpoint)
    floats = [
        value for value in content["teacher"].values() if isinstance(value, torch.Tensor) and value.is_floating_point()
    ]
    assert {value.dtype for value in floats} == {torch.float32}


class LateMetric(FixMatch):
    """Tells of a metric from the sixth step on."""

    def forward(self, batch, teacher):
        loss, metrics = super().forward(batch, teacher)
        return loss, metrics | ({"late": torch.tensor(float(batch.step))} if batch.step >= 5 else {})


def test_a_metric_is_averaged_over_the_steps_that_gave_it(tmp_path):
    config = SHORT.replace(method="test_run.LateMetric", steps=8, eval_every=4, checkpoint_every=7)
    rows = train(config, tmp_path / "run", progress=False).history
    assert "late" not in rows[0] and rows[1]["late"] == 6.0  # of steps 5, 6 and 7


def test_training_makes_cudnn_deterministic_and_leaves_all_else_of_it(tmp_path, monkeypatch):
    cudnn, names = torch.backends.cudnn, ("enabled", "allow_tf32", "benchmark", "deterministic")
    monkeypatch.setattr(cudnn, "allow_tf32", False)
    monkeypatch.setattr(cudnn, "benchmark", True)
    seen = []
    train(
        SHORT.replace(steps=1),
        tmp_path / "run",
        progress=False,
        on_step=lambda _: seen.append([getattr(cudnn, name) for name in names]),
    )
    assert seen == [[True, False, False, True]]
    assert [getattr(cudnn, name) for name in names] == [True, False, True, False]


def test_check_finds_what_train_would_refuse(tmp_path):
    check(SHORT)
    with pytest.raises(UserError, match="25 labels cannot be shared out evenly"):
        check(SHORT.replace(labels=25))
    with pytest.raises(UserError, match=r"threshold 1\.5"):
        check(SHORT.replace(threshold=1.5))


def test_gradients_are_clipped_to_their_norm_together(tmp_path):
    """The first step of gradient descent with momentum is lr times the gradient."""
    plain = SHORT.replace(steps=1, optimizer="heavyball", lr=0.5, lr_schedule="constant", weight_decay=0.0)
    steps = {}
    for clip in (None, 0.01, 1e6):
        config = plain.replace(clip_grad=clip, network="small")
        method = build_method(config, describe(load("digits")))
        before = torch.nn.utils.parameters_to_vector(method.parameters()).detach().clone()
        content = checkpoint.load(train(config, tmp_path / str(clip), progress=False).checkpoint)
        method.load_state_dict(content["method"])
        steps[clip] = torch.nn.utils.parameters_to_vector(method.parameters()).detach() - before
    assert steps[0.01].norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert steps[None].norm() > 10 * steps[0.01].norm() and torch.equal(steps[None], steps[1e6])
    torch.testing.assert_close(steps[0.01] / steps[0.01].norm(), steps[None] / steps[None].norm(), rtol=0, atol=1e-3)


def test_a_run_goes_on_with_moved_images_but_not_with_relabelled_ones(tmp_path):
    """Two that are swapped between classes leave the number of images, their mean and deviation as they were."""
    photos, moved = tmp_path / "photos", tmp_path / "moved"
    for number in range(8):
        file = photos / ("train", "test")[number % 2] / "ab"[number // 2 % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 30 * number, np.uint8)).save(file)
    config = SHORT.replace(data="folder", path=str(photos), labels=None, batch_size=2, lr_schedule="constant", steps=1)
    train(config, tmp_path / "run", progress=False)
    config = config.replace(path=str(photos.rename(moved)), steps=2)
    assert train(config, tmp_path / "run", resume=True, progress=False).steps_done == 1
    (moved / "train/a/0.png").rename(moved / "0.png")
    (moved / "train/b/2.png").rename(moved / "train/a/0.png")
    (moved / "0.png").rename(moved / "train/b/2.png")
    with pytest.raises(UserError, match="the images have changed since the run"):
        train(config.replace(steps=3), tmp_path / "run", resume=True, progress=False)


class Kind(StrEnum):
    HARD = "hard"


@dataclass(frozen=True)
class KindOptions:
    kind: Kind = Kind.HARD


class Enumerated(FixMatch):
    Options = KindOptions


def test_an_option_that_no_file_can_hold_is_refused():
    with pytest.raises(UserError, match="--kind has the type <enum 'Kind'>: use bool, int, float, str, None or Lit"):
        SHORT.replace(method=f"{__name__}.Enumerated")
