"""Gradient accumulation in bfloat16: an optimizer hook updates the teacher once per optimizer step."""

import torch
from torch import nn
from torch.nn import functional as F

from spatial_ensemble import Teacher, spatial_temporal_smoothing
from spatial_ensemble.integrations.optimizer import update_after_step

torch.manual_seed(0)
student = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
teacher = Teacher(student, spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5))
handle = update_after_step(optimizer, teacher, student)  # handle.remove() removes the hook

for batch in range(20):
    x = torch.randn(32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = student(x)
    loss = F.mse_loss(prediction.float(), x.sum(1, keepdim=True))
    (loss / 4).backward()
    if batch % 4 == 3:  # with float16: scaler.step(optimizer); skipped steps are not counted
        optimizer.step()
        optimizer.zero_grad()

print(f"{batch + 1} batches, {teacher.step} updates")
