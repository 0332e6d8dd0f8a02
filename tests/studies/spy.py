"""Methods for these tests: one that writes down all that it sees, one without labels, one that breaks."""

import hashlib

import torch
from torch import Tensor, nn

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.methods import Method, Student
from spatial_ensemble.methods.fixmatch import FixMatch
from spatial_ensemble.smoothing.teacher import Teacher


class Spy(FixMatch):
    """`seen` holds a digest of each step's batch; `first` one of the student before the first step."""

    seen: list[str]
    first: str
    last: "Spy"

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.step == 0:
            self.seen, self.first = [], digest(*self.student.state_dict().values())
            Spy.last = self
        self.seen.append(digest(*batch.labelled, batch.labels, *batch.unlabelled, torch.tensor(batch.step)))
        return super().forward(batch, teacher)


class Unlabelled(Method):
    """Learns to give two views of an image the same features; judged, as such methods are, by its neighbours."""

    unlabelled_views = ("weak", "strong")

    def __init__(self, backbone: nn.Module, num_classes: int, options: object) -> None:
        super().__init__()
        self.student = Student(backbone, nn.Identity())

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        weak, strong = batch.unlabelled
        return (self.student(strong) - teacher(weak)).square().mean(), {}


class Broken(Unlabelled):
    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        raise IndexError("the second\nof one")


def digest(*tensors: Tensor) -> str:
    """Of the values of tensors, to the bit."""
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()
