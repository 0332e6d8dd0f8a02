"""Linear evaluation as training: a classifier on a frozen backbone."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.methods.base import Method, Student, num_features
from spatial_ensemble.methods.options.linear import LinearOptions
from spatial_ensemble.smoothing.teacher import Teacher


class Linear(Method):
    """A linear classifier on a frozen backbone, loaded by `--init`, trained on random crops of labelled images.

        loss = cross_entropy(head(backbone(x)))

    Unlike `evaluate --protocol linear`, which computes each image's features once, every epoch has other crops. The
    backbone stays in eval mode throughout.
    """

    Options = LinearOptions
    labelled_views = ("crop",)
    headline = "accuracy"
    needs_init = True
    student: Student

    def __init__(self, backbone: nn.Module, num_classes: int, options: LinearOptions) -> None:
        super().__init__()
        linear = nn.Linear(num_features(backbone), num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        head = nn.Sequential(linear, nn.BatchNorm1d(num_classes)) if options.norm else nn.Sequential(linear)
        self.student = Student(backbone.requires_grad_(False).eval(), head)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.student.backbone.eval()
        return self

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            features = self.student.backbone(batch.labelled[0])
        return F.cross_entropy(self.student.head(features).float(), batch.labels), {}
