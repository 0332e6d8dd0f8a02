"""FixMatch: confident labels of weak views teach strong views."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.methods.base import Method, Student, classifier, targets
from spatial_ensemble.methods.options.fixmatch import FixMatchOptions
from spatial_ensemble.smoothing.teacher import Teacher


def pseudo_label_loss(weak_logits: Tensor, strong_logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """FixMatch's unlabelled loss: cross-entropy with confident hard labels.

        1/B sum_i [max softmax(weak_i) >= threshold] * cross_entropy(strong_i, argmax weak_i)

    Args:
        weak_logits: logits of the weak views, [B, K], detached.
        strong_logits: the student's logits of the strong views, [B, K].
        threshold: minimum confidence, in [0, 1].

    Returns:
        The loss and the fraction of images above the threshold, both scalars.

    Source: Sohn et al. 2020, equation 4.
    """
    confidence, labels = weak_logits.detach().float().softmax(dim=1).max(dim=1)
    mask = (confidence >= threshold).float()
    losses = F.cross_entropy(strong_logits.float(), labels, reduction="none")
    return (losses * mask).mean(), mask.mean()


class FixMatch(Method):
    """FixMatch (Sohn et al. 2020), with labels from the teacher as in EMAN (arXiv 2101.08482) and the paper.

        loss = cross_entropy(weak labelled) + unlabelled_weight * pseudo_label_loss

    The student sees labelled and unlabelled images in one forward pass, so that they share BatchNorm's statistics (the
    purpose of kekmodel/FixMatch-pytorch's interleaving), unless `labelled_apart` is set: with it and
    teacher_norm="batch" a short training of a small network was better than the labels alone, which was not shown
    without it (benchmarks/results).
    """

    Options = FixMatchOptions
    labelled_views = ("weak",)
    unlabelled_views = ("weak", "strong")
    headline = "accuracy"

    def __init__(self, backbone: nn.Module, num_classes: int, options: FixMatchOptions) -> None:
        super().__init__()
        self.student = Student(backbone, classifier(backbone, num_classes))
        self.unlabelled_ratio = options.unlabelled_ratio
        self.options = options

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
        if self.options.labels_from == "teacher":
            weak_logits = targets(teacher, weak, self.options.teacher_norm)
            logits, strong_logits = self._logits(labelled, strong)
        else:
            logits, unlabelled_logits = self._logits(labelled, torch.cat([weak, strong]))
            weak_logits, strong_logits = unlabelled_logits.chunk(2)
        loss_labelled = F.cross_entropy(logits.float(), batch.labels)
        loss_unlabelled, mask_rate = pseudo_label_loss(weak_logits, strong_logits, self.options.threshold)
        loss = loss_labelled + self.options.unlabelled_weight * loss_unlabelled
        metrics = {"loss_labelled": loss_labelled, "loss_unlabelled": loss_unlabelled, "mask_rate": mask_rate}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _logits(self, labelled: Tensor, unlabelled: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits of both."""
        if self.options.labelled_apart:
            return self.student(labelled), self.student(unlabelled)
        logits, unlabelled_logits = self.student(torch.cat([labelled, unlabelled])).tensor_split([len(labelled)])
        return logits, unlabelled_logits
