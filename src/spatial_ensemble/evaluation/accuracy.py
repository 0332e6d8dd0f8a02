"""Accuracy of a classifier."""

from collections.abc import Sequence

from torch import nn

from spatial_ensemble.data.images import Images
from spatial_ensemble.evaluation.predict import predict


def accuracy(network: nn.Module, images: Images, mean: Sequence[float], std: Sequence[float]) -> float:
    """Top-1 accuracy, in per cent.

    Args:
        network: images [B, C, H, W] to logits [B, classes].
        images: uint8 images and their labels.
        mean, std: per channel of the training images, in units of the full range.
    """
    labels = predict(network, images.images, mean, std).argmax(dim=1)
    right = labels == images.labels.to(labels.device)
    return 100 * int(right.sum()) / len(images)
