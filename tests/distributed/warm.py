"""Imported by the process that all ranks are forked from, so that imports and compilation happen once."""

import torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor.parallel
from torch import nn

from spatial_ensemble import Teacher, spatial_temporal_smoothing

if not hasattr(torch.cpu.Stream, "record_event"):  # torch 2.6, whose FSDP2 calls what it has for GPUs only
    torch.cpu.Stream.record_event = torch.cpu.Stream.wait_event = lambda *_: None

torch.set_num_threads(1)
for _unit in ("tensor", "element"):
    _student = nn.Linear(2, 3)
    Teacher(_student, spatial_temporal_smoothing(0.9, 0.5), unit=_unit).update(_student)
