"""DistributedDataParallel: each rank updates its own teacher without communication; all stay identical bit for bit.

torchrun --standalone --nproc-per-node 2 examples/ddp.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spatial_ensemble import Teacher, spatial_temporal_smoothing

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, device = dist.get_rank(), torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)

torch.manual_seed(0)
student = DistributedDataParallel(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)).to(device))
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
teacher = Teacher(student, spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5))

torch.manual_seed(1 + rank)  # different data and global generators on each rank
for _ in range(20):
    x = torch.randn(32, 8, device=device)
    loss = (student(x + 0.1 * torch.randn_like(x)) - teacher(x)).square().mean() + student(x).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    teacher.update(student)

different = teacher.verify_ranks()
assert not different, different
if rank == 0:
    print(f"{dist.get_world_size()} ranks, one teacher: {teacher.fingerprint()}")
dist.destroy_process_group()
