"""Mean Teacher: agree with the teacher on another view of the same image."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.methods.base import Method, Student, classifier, targets
from spatial_ensemble.methods.options.mean_teacher import MeanTeacherOptions
from spatial_ensemble.smoothing.teacher import Teacher


def consistency_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The mean squared difference of probabilities, over images and classes; logits [B, K] to a scalar.

    Source: Tarvainen & Valpola 2017, section 2.
    """
    return F.mse_loss(student_logits.float().softmax(dim=1), teacher_logits.float().softmax(dim=1))


def ramp_up(step: int, steps: int) -> float:
    """exp(-5 (1 - step / steps)^2), and 1 from `steps` on.

    Source: Laine & Aila 2017, section 2.1 and appendix A.

    Example:
        >>> round(ramp_up(0, 100), 4), ramp_up(100, 100), ramp_up(0, 0)
        (0.0067, 1.0, 1.0)
    """
    return 1.0 if step >= steps else math.exp(-5 * (1 - step / steps) ** 2)


class MeanTeacher(Method):
    """Mean Teacher (Tarvainen & Valpola 2017).

        loss = cross_entropy(labelled) + consistency_weight * ramp_up(step) * consistency_loss(unlabelled)

    Student and teacher see different weak views of the same unlabelled images, which include the labelled ones. The
    labelled images of a step have a forward pass of their own, so that BatchNorm normalises each part separately. This,
    the weight and the ratio are those of google-research/fixmatch and TorchSSL, where only the labelled part moves the
    running statistics; here both do. The paper's own code has a weight of 100 and one batch of both kinds, which was
    worse than the labels alone on the one seed tried here (benchmarks/results).
    """

    Options = MeanTeacherOptions
    labelled_views = ("weak",)
    unlabelled_views = ("weak", "weak")
    headline = "accuracy"

    def __init__(self, backbone: nn.Module, num_classes: int, options: MeanTeacherOptions) -> None:
        super().__init__()
        self.student = Student(backbone, classifier(backbone, num_classes))
        self.unlabelled_ratio = options.unlabelled_ratio
        self.options = options

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        (labelled,), (view, other_view) = batch.labelled, batch.unlabelled
        loss_labelled = F.cross_entropy(self.student(labelled).float(), batch.labels)
        consistency = consistency_loss(self.student(view), targets(teacher, other_view, self.options.teacher_norm))
        weight = self.options.consistency_weight * ramp_up(batch.step, self.options.ramp_up_steps)
        metrics = {"loss_labelled": loss_labelled.detach(), "consistency": consistency.detach()}
        return loss_labelled + weight * consistency, metrics
