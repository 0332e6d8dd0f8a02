"""Small students that hold every kind of tensor: convolutions, norms with buffers, tied and 0-d parameters."""

import torch
from torch import Tensor, nn


class Student(nn.Module):
    """A convolution, a BatchNorm, tied linear layers and a 0-d scale, on [batch, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.encode = nn.Linear(8, 8, bias=False)
        self.decode = nn.Linear(8, 8, bias=False)
        self.decode.weight = self.encode.weight
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu().mean((2, 3))
        return self.decode(self.encode(x).relu()) * self.scale


def student(seed: int = 0) -> Student:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Student()


def walk(module: nn.Module, step: int) -> None:
    """Move every tensor as some training would, as a function of the step alone."""
    noise = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=noise).to(tensor.dtype))
            else:
                tensor.add_(1)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers by name, a tied one under each of its names."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().clone() for name, tensor in named}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """To the bit."""
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
