"""What methods share."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spatial_ensemble import Teacher, temporal_moving_average
from spatial_ensemble.methods.base import spread, targets


def test_spread_is_that_of_the_directions() -> None:
    assert spread(torch.tensor([[3.0, 0.0], [0.0, 5.0]])).item() == pytest.approx(1.0)
    assert spread(torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]])).item() < 1e-6  # one direction: a collapse
    outputs = np.random.default_rng(0).normal(size=(40, 6)) * np.arange(1, 41)[:, None]
    directions = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    expected = directions.std(axis=0, ddof=1).mean() * np.sqrt(6)
    np.testing.assert_allclose(spread(torch.from_numpy(outputs)).item(), expected, rtol=1e-5)


class Fragile(nn.Module):
    """BatchNorm and dropout, and an error at the second pass in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.passes = nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.5), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        if self.passes == 2:
            raise RuntimeError("out of memory")
        return self.dropout(self.norm(x))  # type: ignore[no-any-return]


def test_a_forward_that_raises_leaves_the_teacher_in_eval_mode_with_its_momentum() -> None:
    teacher = Teacher(Fragile(), temporal_moving_average(0.9))
    with pytest.raises(RuntimeError, match="out of memory"):
        targets(teacher, torch.randn(8, 3), "batch", groups=2)
    assert not any(module.training for module in teacher.modules())
    norm = teacher.module.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm1d) and norm.momentum == 0.3


def test_running_statistics_are_used_and_kept_and_those_of_the_batch_move_them_as_one_pass() -> None:
    student = Fragile()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 5
    teacher = Teacher(student, temporal_moving_average(0.9))
    assert torch.equal(targets(teacher, x, "running"), student.eval()(x).detach())
    assert torch.equal(teacher.module.get_buffer("norm.running_mean"), torch.zeros(3))
    outputs = targets(teacher, x, "batch")
    assert (outputs == 0).any()  # dropout is active
    torch.testing.assert_close(teacher.module.get_buffer("norm.running_mean"), 0.3 * x.mean(0))
    grouped = Teacher(nn.BatchNorm1d(3, momentum=0.3), temporal_moving_average(0.9))
    parts = targets(grouped, torch.cat([x, x]), "batch", groups=2)
    torch.testing.assert_close(parts[:8], parts[8:])
    torch.testing.assert_close(grouped.module.get_buffer("running_mean"), 0.3 * x.mean(0))
