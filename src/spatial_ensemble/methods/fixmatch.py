"""FixMatch: confident labels of weak views teach strong views."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.methods.base import Method, Student, TeacherNorm, classifier, one_of, require, targets
from spatial_ensemble.smoothing.teacher import Teacher

LabelsFrom = Literal["teacher", "student"]


def pseudo_label_loss(weak_logits: Tensor, strong_logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """FixMatch's unlabelled loss: cross-entropy against hard labels, where they are confident.

        1/B sum_i [max softmax(weak_i) >= threshold] * cross_entropy(strong_i, argmax weak_i)

    Args:
        weak_logits: what labels the weak views, [B, K]; no gradient flows into it.
        strong_logits: the student's answer to the strong views, [B, K].
        threshold: least confidence, in [0, 1].

    Returns:
        The loss and the share of images that passed the threshold, both scalars.

    Source: Sohn et al. 2020, equation 4.
    """
    confidence, labels = weak_logits.detach().float().softmax(dim=1).max(dim=1)
    mask = (confidence >= threshold).float()
    losses = F.cross_entropy(strong_logits.float(), labels, reduction="none")
    return (losses * mask).mean(), mask.mean()


class FixMatch(Method):
    """FixMatch (Sohn et al. 2020), with the teacher's labels as EMAN (arXiv 2101.08482) and the paper have it.

        loss = cross_entropy(weak labelled) + unlabelled_weight * pseudo_label_loss

    The student sees all of its images in one forward pass, so that BatchNorm's statistics are those of labelled and
    unlabelled ones together (what kekmodel/FixMatch-pytorch's interleaving is for), unless `labelled_apart` is set:
    with it and teacher_norm="batch" a short training of a small network was above the labels alone, which it was not
    shown to be without (benchmarks/results).

    Args:
        backbone: images to features, with `num_features`.
        num_classes: number of classes.
        threshold: least confidence of a label that is learnt from, in [0, 1].
        unlabelled_weight: factor of the unlabelled loss, 0 trains on the labels alone.
        unlabelled_ratio: unlabelled images in a batch for each labelled one.
        labels_from: who labels the weak views: "teacher" or "student" (the original FixMatch).
        labelled_apart: let the labelled images pass through the student on their own.
        teacher_norm: what the BatchNorm of a teacher that labels uses: its smoothed statistics ("running", as EMAN), or
            those of the weak views ("batch").
    """

    labelled_views = ("weak",)
    unlabelled_views = ("weak", "strong")
    headline = "accuracy"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        unlabelled_ratio: int = 7,
        labels_from: LabelsFrom = "teacher",
        labelled_apart: bool = False,
        teacher_norm: TeacherNorm = "running",
    ) -> None:
        super().__init__()
        require(0 <= threshold <= 1, "threshold", threshold, "a confidence from 0 to 1")
        require(unlabelled_weight >= 0, "unlabelled_weight", unlabelled_weight, "0 or more")
        require(unlabelled_ratio >= 1, "unlabelled_ratio", unlabelled_ratio, "1 or more")
        self.student = Student(backbone, classifier(backbone, num_classes))
        self.threshold = threshold
        self.unlabelled_weight = unlabelled_weight
        self.unlabelled_ratio = unlabelled_ratio
        self.labels_from = one_of("labels_from", labels_from, LabelsFrom)
        self.labelled_apart = labelled_apart
        self.teacher_norm = one_of("teacher_norm", teacher_norm, TeacherNorm)

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
        if self.labels_from == "teacher":
            weak_logits = targets(teacher, weak, self.teacher_norm)
            logits, strong_logits = self._answers(labelled, strong)
        else:
            logits, unlabelled_logits = self._answers(labelled, torch.cat([weak, strong]))
            weak_logits, strong_logits = unlabelled_logits.chunk(2)
        loss_labelled = F.cross_entropy(logits.float(), batch.labels)
        loss_unlabelled, mask_rate = pseudo_label_loss(weak_logits, strong_logits, self.threshold)
        loss = loss_labelled + self.unlabelled_weight * loss_unlabelled
        metrics = {"loss_labelled": loss_labelled, "loss_unlabelled": loss_unlabelled, "mask_rate": mask_rate}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _answers(self, labelled: Tensor, unlabelled: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits for both."""
        if self.labelled_apart:
            return self.student(labelled), self.student(unlabelled)
        logits, unlabelled_logits = self.student(torch.cat([labelled, unlabelled])).tensor_split([len(labelled)])
        return logits, unlabelled_logits
