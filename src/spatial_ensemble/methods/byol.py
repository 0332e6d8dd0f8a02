"""BYOL: predict the teacher's projection of another view of the same image."""

import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.methods.base import Method, Student, num_features, spread, targets
from spatial_ensemble.methods.options.byol import BYOLOptions
from spatial_ensemble.smoothing.teacher import Teacher


def regression_loss(predictions: Tensor, projections: Tensor) -> Tensor:
    """The squared distance of unit vectors, averaged over the images: a scalar in [0, 4].

        1/B sum_i || p_i / |p_i| - z_i / |z_i| ||^2  =  2 - 2 cos(p, z)

    Args:
        predictions: the student's, [B, D].
        projections: the teacher's, [B, D].

    Source: Grill et al. 2020, equation 2.
    """
    return 2 - 2 * F.cosine_similarity(predictions.float(), projections.float(), dim=1).mean()


class BYOL(Method):
    """BYOL (Grill et al. 2020): the student and a predictor regress the teacher's projection, symmetrically.

    loss = regression_loss(predictor(student(x1)), teacher(x2)) + the same with x1 and x2 swapped
    """

    Options = BYOLOptions
    unlabelled_views = ("byol_1", "byol_2")

    def __init__(self, backbone: nn.Module, num_classes: int, options: BYOLOptions) -> None:
        from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

        super().__init__()
        projector = BYOLProjectionHead(num_features(backbone), options.hidden_dim, options.projection_dim)
        self.student = Student(backbone, projector)
        self.predictor = BYOLPredictionHead(options.projection_dim, options.hidden_dim, options.projection_dim)
        self.options = options

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = batch.unlabelled
        first_target, second_target = (targets(teacher, view, self.options.teacher_norm) for view in (first, second))
        # The views are augmented differently: each is normalised by its own statistics, as published.
        first_prediction, second_prediction = (self.predictor(self.student(view)) for view in (first, second))
        loss = regression_loss(first_prediction, second_target) + regression_loss(second_prediction, first_target)
        return loss, {"spread": spread(first_target)}
