"""A small network whose tensors do not divide by the number of ranks, its training, and the replay of a training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from spatial_ensemble import Teacher, spatial_temporal_smoothing

RULE = spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.6)
UNITS = ("layer", "tensor", "channel", "element")
State = dict[str, Tensor]
trains_shards = pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 cannot train FSDP2 modules on a CPU")


class Uneven(nn.Module):
    """Dimension 0 of 5, 10, 3 and 1 (fewer rows than ranks), a convolution, BatchNorm, tied and frozen weights."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 5, 3)
        self.norm = norm(5)
        self.body = nn.Linear(20, 10)
        self.out = nn.Linear(10, 3)
        self.again = nn.Linear(10, 3)
        self.again.weight = self.out.weight
        self.last = nn.Linear(3, 1)
        self.frozen = nn.Linear(1, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:  # [B, 6] -> [B, 3]
        x = self.norm(self.filters(x[:, None])).relu().flatten(1)
        x = self.body(x).relu()
        return self.frozen(self.last(self.out(x) + self.again(x)))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def uneven(seed: int = 0, norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> Uneven:
    torch.manual_seed(seed)
    return Uneven(norm)


def batch(step: int, rank: int = 0) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(100 * step + rank))


def sgd(student: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in student.parameters() if p.requires_grad], 0.1)


def train_step(student: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    student(x).square().mean().backward()
    optimizer.step()


def copied(state: State) -> State:
    return {name: value.detach().clone() for name, value in state.items()}


def history(student: nn.Module, steps: int) -> list[State]:
    """The student's states in a training by one process: at first, and after each step."""
    optimizer, states = sgd(student), [copied(student.state_dict())]
    for step in range(steps):
        train_step(student, optimizer, batch(step))
        states.append(copied(student.state_dict()))
    return states


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "placements") else tensor


def put(student: nn.Module, state: State) -> None:
    """Give a student, sharded or not, the values of a whole state: each rank takes its part, without communication."""
    for name, value in student.state_dict().items():
        whole = state[name]
        if hasattr(value, "placements"):
            everywhere = DTensor.from_local(whole, value.device_mesh, [Replicate()] * value.device_mesh.ndim)
            whole = everywhere.redistribute(placements=value.placements).to_local()
        local(value).copy_(whole)


def replay(teacher: Teacher, student: nn.Module, states: list[State]) -> None:
    for state in states:
        put(student, state)
        teacher.update(student)


def gathered(module: nn.Module) -> State:
    state = copied(module.state_dict())
    return {name: value.full_tensor() if hasattr(value, "placements") else value for name, value in state.items()}


def differences(one: State, other: State) -> list[str]:
    """Names of the tensors that are not equal to the bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not (one[name].equal(other[name]) and one[name].dtype == other[name].dtype)]


def expected(states: list[State], **options: Any) -> Teacher:
    """The teacher that one process would have: built on the first of the states, updated on the others."""
    student = uneven()
    student.load_state_dict(states[0])
    teacher = Teacher(student, RULE, **options)
    replay(teacher, student, states[1:])
    return teacher
