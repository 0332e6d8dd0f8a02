"""Base class of the methods, and what they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.options import NoOptions, TeacherNorm
from spatial_ensemble.smoothing.teacher import Teacher


class Student(nn.Module):
    """What the teacher smooths: a backbone and its head.

    Args:
        backbone: images [B, C, H, W] to features [B, D].
        head: features to outputs [B, K].
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.backbone(x))
        return outputs


def targets(teacher: Teacher, x: Tensor, norm: TeacherNorm, groups: int = 1) -> Tensor:
    """The teacher's outputs, normalised by its smoothed running statistics or by those of the batch x.

    With "batch" the teacher is in train mode for this call, as in the published methods: BatchNorm updates the running
    statistics, as far as one pass would even if x is split into `groups` with statistics of their own, and dropout is
    active.
    """
    if norm == "running":
        outputs: Tensor = teacher(x)
        return outputs
    with _train_mode(teacher.module, groups):
        return torch.cat([teacher(group) for group in x.tensor_split(groups)])


@contextmanager
def _train_mode(module: nn.Module, passes: int) -> Iterator[None]:
    """Train mode, with BatchNorm momenta such that so many passes move the running statistics as far as one."""
    modules = module.modules() if passes > 1 else ()
    norms = [(norm, norm.momentum) for norm in modules if isinstance(norm, _BatchNorm) and norm.momentum]
    module.train()
    try:
        for norm, momentum in norms:
            norm.momentum = 1 - (1 - momentum) ** (1 / passes)
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
        module.eval()


@torch.no_grad()
def spread(outputs: Tensor) -> Tensor:
    """Diversity of the directions of outputs [B, D]: about 1 for random ones, 0 after a collapse."""
    deviation: Tensor = F.normalize(outputs.float(), dim=1).std(dim=0).mean()
    return deviation * float(outputs.shape[1] ** 0.5)


def num_features(backbone: nn.Module) -> int:
    """The length of a backbone's feature vectors."""
    return int(backbone.num_features)  # type: ignore[arg-type]


def classifier(backbone: nn.Module, num_classes: int) -> nn.Linear:
    """A linear classifier for a backbone's features, initialised as in Wide ResNet: Glorot normal, zero bias."""
    linear = nn.Linear(num_features(backbone), num_classes)
    nn.init.xavier_normal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Method(nn.Module, ABC):
    """A way for a teacher to teach a student.

    The constructor takes `backbone` (images to features, with the integer `num_features`), `num_classes` (0 if no image
    has a label) and `options` (an instance of `Options`). It sets `student`; anything else that is trained, such as
    BYOL's predictor, is a submodule too.

    Attributes:
        Options: frozen dataclass of the method's options, each a bool, int, float, str or Literal with a default. Its
            fields are flags on the command line.
        labelled_views: names of the views of each labelled image.
        unlabelled_views: names of the views of each unlabelled image.
        unlabelled_ratio: unlabelled images per labelled image in a batch; 1 if nothing is labelled.
        needs_init: whether its backbone needs pretrained weights (`--init`).
        headline: how it is evaluated: accuracy of the student's own outputs, or kNN accuracy of its backbone.
        student: what the teacher smooths, with its `backbone`.
    """

    Options: ClassVar[type[Any]] = NoOptions
    labelled_views: tuple[str, ...] = ()
    unlabelled_views: tuple[str, ...] = ()
    unlabelled_ratio: int = 1
    needs_init: bool = False
    headline: Literal["accuracy", "knn"] = "knn"
    student: nn.Module

    @abstractmethod
    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        """One step's loss.

        Args:
            batch: the views that the method names, in that order.
            teacher: the smoothed student; calling it gives no gradients. It changes only with `teacher_norm="batch"`,
                where BatchNorm updates its running statistics (see `targets`).

        Returns:
            The loss to minimise, a scalar, and detached scalars to log under any names except those of a run's own
            columns: loss, step, teacher_accuracy and student_accuracy.
        """

    def before_optimizer_step(self, step: int) -> None:
        """Called with the number of the step, from 0, once its gradients are computed; does nothing by default."""

    def check(self, *, batch_size: int, processes: int, num_classes: int, labelled: int, size: int) -> None:
        """Check before training that the method can learn from the data; a subclass adds its own conditions.

        Args:
            batch_size: labelled images per step (unlabelled ones if nothing is labelled), over all processes.
            processes: how many share these images, each with its own BatchNorm statistics.
            num_classes: classes of the data set; 0 if no image has a label.
            labelled: number of labelled images.
            size: side of an image, pixels.

        Raises:
            UserError: it cannot.
        """
        name = type(self).__name__
        if num_classes == 1:
            raise UserError(f"the data set has one class: {name} needs 2 or more to be measured by")
        if self.labelled_views and labelled == 0:
            raise UserError(f"{name} learns from labels, and no image has one: label some, or use byol, moco or dino")
        if batch_size < 2 * processes and any(isinstance(module, _BatchNorm) for module in self.modules()):
            among = f" among {processes} processes" if processes > 1 else ""
            raise UserError(f"batch size {batch_size}{among} is too small for BatchNorm: use {2 * processes} or more")
