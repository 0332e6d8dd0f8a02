"""Save and resume: the teacher continues bit for bit, draws included."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from spatial_ensemble import Teacher, cosine, spatial_temporal_smoothing


def build() -> tuple[nn.Module, torch.optim.Optimizer, Teacher]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
    smoothing = spatial_temporal_smoothing(momentum=cosine(0.9, 1.0, steps=40), preserve_prob=0.5)
    return student, torch.optim.Adam(student.parameters()), Teacher(student, smoothing, seed=1)


def train(student: nn.Module, optimizer: torch.optim.Optimizer, teacher: Teacher, steps: range) -> None:
    for step in steps:
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))  # a batch is a function of the step
        loss = (student(x) - teacher(x)).square().mean() + student(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update(student)


whole = build()
train(*whole, range(40))

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "half.pt"
    first = build()
    train(*first, range(17))
    torch.save([part.state_dict() for part in first], file)  # with the teacher's step, seed and weights

    second = build()
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, range(second[2].step, 40))

assert second[2].fingerprint() == whole[2].fingerprint()
print(f"resumed at step 17, identical at step {second[2].step}: {second[2].fingerprint()}")
