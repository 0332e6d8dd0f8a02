"""What a run reports and keeps: nothing that is not finite, and the metrics of one's own beside its own."""

from dataclasses import dataclass

import pytest
import torch
from lightning.fabric import Fabric
from runs import SHORT

from spatial_ensemble import UserError
from spatial_ensemble.methods.fixmatch import FixMatch
from spatial_ensemble.methods.options.fixmatch import FixMatchOptions
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.averages import Averages
from spatial_ensemble.training.run import train


class NanGradient(FixMatch):
    """A finite loss, whose gradient is NaN from the third step on."""

    def forward(self, batch, teacher):
        loss, metrics = super().forward(batch, teacher)
        nothing = (0 * self.student.head.weight).sum()
        return loss + (nothing.sqrt() if batch.step >= 2 else nothing), metrics


class InfiniteTeacher(FixMatch):
    """The teacher alone leaves the finite numbers, in the third step."""

    def forward(self, batch, teacher):
        if batch.step == 2:
            teacher.module.head.bias.fill_(torch.inf)
        return super().forward(batch, teacher)


class Masked(FixMatch):
    """With a buffer that is not finite from the start."""

    def __init__(self, backbone, num_classes, options):
        super().__init__(backbone, num_classes, options)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


@dataclass(frozen=True)
class NamingOptions(FixMatchOptions):
    name: str = "own"


class Naming(FixMatch):
    """Reports a metric of any name."""

    Options = NamingOptions

    def __init__(self, backbone, num_classes, options):
        super().__init__(backbone, num_classes, options)
        self.name = options.name

    def forward(self, batch, teacher):
        return super().forward(batch, teacher)[0], {self.name: torch.tensor(7.0)}


@pytest.mark.parametrize("steps", [1, 20])
def test_weights_that_an_update_made_infinite_are_not_kept(tmp_path, steps):
    """Its loss was still finite: it is that of the weights before."""
    config = SHORT.replace(lr=3e38, steps=steps, checkpoint_every=1)
    with pytest.raises(UserError, match="the weights are non-finite after step 1: lower --lr, in another --out"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("method", ["NanGradient", "InfiniteTeacher"])
def test_what_no_loss_shows_takes_no_checkpoints_place(tmp_path, method):
    config = SHORT.replace(method=f"{__name__}.{method}", steps=6, checkpoint_every=1)
    with pytest.raises(UserError, match="the weights are non-finite after step 3"):
        train(config, tmp_path / "run", progress=False)
    kept = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert kept["step"] == 2
    states = (*kept["method"].values(), *kept["teacher"].values())
    assert all(value.isfinite().all() for value in states if isinstance(value, torch.Tensor))


def test_what_was_not_finite_from_the_start_is_no_mistake(tmp_path):
    train(SHORT.replace(method=f"{__name__}.Masked", steps=2), tmp_path / "run", progress=False)
    kept = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert kept["method"]["mask"].tolist() == [0.0, -torch.inf]


@pytest.mark.parametrize("name", ["loss", "step", "teacher_accuracy", "student_accuracy"])
def test_a_metric_does_not_take_a_name_of_the_runs_own(tmp_path, name):
    config = SHORT.replace(method=f"{__name__}.Naming", name=name, steps=1)
    with pytest.raises(UserError, match=f"Naming reports a metric named '{name}', a column of every run: rename it"):
        train(config, tmp_path / "run", progress=False)


def test_averages_are_of_the_values_that_there_were_and_keep_no_graph():
    averages = Averages(Fabric(accelerator="cpu"), {"old": (torch.tensor(5.0), 2)})
    weight = torch.ones((), requires_grad=True)
    averages.add({"early": 2 * weight, "old": torch.tensor(1.0)})
    averages.add({"early": 4 * weight, "late": torch.tensor(3)})
    assert not any(total.requires_grad for total, _ in averages.own.values())
    assert averages.totals() == {"old": (6, 3), "early": (6, 2), "late": (3, 1)}
    assert Averages(Fabric(accelerator="cpu"), {}).totals() == {}
