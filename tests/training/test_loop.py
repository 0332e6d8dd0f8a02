"""What the loop hands to its parts at each step, and what it finds again where it goes on."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from runs import SHORT, Killed, assert_equal, kill_at, without_time

from spatial_ensemble import UserError
from spatial_ensemble.data.sources import load
from spatial_ensemble.methods.dino import DINO
from spatial_ensemble.methods.fixmatch import FixMatch
from spatial_ensemble.training import prepare, run
from spatial_ensemble.training.build import restore
from spatial_ensemble.training.optim import build_optimizer, learning_rate
from spatial_ensemble.training.prepare import check
from spatial_ensemble.training.run import train

SIX = SHORT.replace(steps=6, eval_every=2, checkpoint_every=3)


class Dropping(torch.nn.Sequential):
    """A network that draws at each step."""

    def __init__(self, channels, size):
        super().__init__(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(channels * size**2, 16))
        self.num_features = 16


class WatchedDINO(DINO):
    """Writes down its last layer as each step finds it."""

    last: ClassVar[list] = []

    def forward(self, batch, teacher):
        self.last.append(self.student.head.last.weight.detach().clone())
        return super().forward(batch, teacher)


class Shapes(FixMatch):
    """Writes down what it is shown."""

    seen: ClassVar[list] = []

    def forward(self, batch, teacher):
        self.seen.append((batch.step, *(tuple(view.shape) for view in (*batch.labelled, *batch.unlabelled))))
        return super().forward(batch, teacher)


def train_with_a_break(config, out, at=3, collect=None):
    """Killed after step `at` and resumed from the last checkpoint before."""

    def kill(done):
        if collect is not None:
            collect(done)
        kill_at(at)(done)

    with pytest.raises(Killed):
        train(config, out, progress=False, on_step=kill)
    torch.manual_seed(0)  # whatever state the new process has
    return train(config, out, resume=True, progress=False, on_step=collect)


def test_the_last_layer_of_dino_is_frozen_for_as_many_steps_as_asked_for(tmp_path):
    small = {"out_dim": 8, "hidden_dim": 8, "bottleneck_dim": 4, "local_crops": 0, "freeze_last_layer_steps": 2}
    WatchedDINO.last.clear()
    config = SHORT.replace(method=f"{__name__}.WatchedDINO", labels=None, steps=4, **small)
    train(config, tmp_path / "run", progress=False)
    assert [torch.equal(weight, WatchedDINO.last[0]) for weight in WatchedDINO.last] == [True, True, True, False]


def test_each_step_has_the_learning_rate_of_its_number(tmp_path, monkeypatch):
    optimizers, seen = [], {}

    def build(*args):
        optimizers.append(build_optimizer(*args))
        return optimizers[-1]

    monkeypatch.setattr(run, "build_optimizer", build)
    config = SIX.replace(lr_schedule="cosine", warmup_steps=2)
    train_with_a_break(
        config,
        tmp_path / "run",
        at=4,
        collect=lambda done: seen.setdefault(done, []).append({group["lr"] for group in optimizers[-1].param_groups}),
    )
    assert seen == {done: [{learning_rate(config, done - 1)}] * (2 if done == 4 else 1) for done in range(1, 7)}


def test_a_network_with_dropout_resumes_to_the_bit(tmp_path):
    config = SIX.replace(network=f"{__name__}.Dropping")
    whole = train(config, tmp_path / "whole", progress=False)
    parts = train_with_a_break(config, tmp_path / "parts")
    assert_equal(without_time(whole.checkpoint), without_time(parts.checkpoint))


def test_a_step_has_as_many_images_as_asked_for(tmp_path):
    Shapes.seen.clear()
    config = SHORT.replace(method=f"{__name__}.Shapes", unlabelled_ratio=3, steps=2)
    train(config, tmp_path / "run", progress=False)
    assert Shapes.seen == [(step, (10, 1, 8, 8), (30, 1, 8, 8), (30, 1, 8, 8)) for step in range(2)]


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_where_that_keeps_their_class(monkeypatch, flip):
    seen, view = [], prepare.view
    monkeypatch.setattr(prepare.sources, "load", lambda *args, **kwargs: replace(load("digits"), flip=flip))
    monkeypatch.setattr(prepare, "view", lambda name, **how: seen.append((name, how)) or view(name, **how))
    check(SHORT)
    assert {name for name, _ in seen} == {"weak", "strong"}
    assert all(how == {"size": 8, "flip": flip} for _, how in seen)


def test_another_seed_draws_other_masks(tmp_path):
    ages = []
    for seed in (0, 1):
        path = train(SIX.replace(seed=seed), tmp_path / f"{seed}", progress=False).checkpoint
        ages.append(restore(path)[-1].age())
    assert ages[0].keys() == ages[1].keys() and ages[0] != ages[1]


def test_a_momentum_that_was_laid_over_the_run_is_not_laid_anew(tmp_path):
    config = SHORT.replace(steps=1, lr_schedule="constant", momentum_schedule="cosine")
    train(config, tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="has --steps 1, not 2: its schedule depends on the 1 steps"):
        train(config.replace(steps=2), tmp_path / "run", resume=True, progress=False)


def test_tensorboard_has_each_evaluation_of_a_resumed_run_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = train_with_a_break(SIX, tmp_path / "run", at=5)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in events] == [2, 4, 6]
    assert [event.value for event in events] == pytest.approx([row["loss"] for row in result.history])
