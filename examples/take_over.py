"""Continue a training that averaged with another package (here torch): its average becomes the teacher."""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spatial_ensemble import Teacher, spatial_temporal_smoothing
from spatial_ensemble.integrations.layouts import from_layout

torch.manual_seed(0)
student = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)


def step(x: torch.Tensor) -> None:
    loss = (student(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


with tempfile.TemporaryDirectory() as folder:
    averaged = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(10):
        step(torch.randn(32, 8))
        averaged.update_parameters(student)
    torch.save(averaged.state_dict(), Path(folder) / "averaged.pt")

    checkpoint = torch.load(Path(folder) / "averaged.pt", weights_only=True)
    teacher = Teacher(student, spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5))
    teacher.module.load_state_dict(from_layout(checkpoint, "torch"))
    teacher.step = int(checkpoint["n_averaged"])  # otherwise schedules and draws start at 0

assert torch.equal(teacher.module[0].weight, averaged.module[0].weight)
for _ in range(10):
    step(torch.randn(32, 8))
    teacher.update(student)
print(f"{teacher.step} updates, {teacher.step - int(averaged.n_averaged)} of them here")
