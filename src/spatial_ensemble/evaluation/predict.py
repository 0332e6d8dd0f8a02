"""Outputs of a network for many images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spatial_ensemble.data.images import Images, Pixels, channel_tensor, normalise


@torch.no_grad()
def predict(
    network: nn.Module,
    images: Pixels,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    rows: Tensor | None = None,
    batch_size: int = 500,
) -> Tensor:
    """Outputs of a network in eval mode; its mode is restored afterwards.

    Args:
        network: images [B, C, H, W], in the dtype of its first floating-point parameter, to outputs [B, K].
        images: uint8 [N, C, H, W].
        mean, std: per channel of the training images, in units of the full range.
        rows: int64 [M], the images to take; None: all N.
        batch_size: images at a time.

    Returns:
        float32 [M, K], on the network's device.

    Example:
        >>> images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        >>> predict(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), images, [0.5], [0.5]).shape
        torch.Size([3, 10])
    """
    like = next(parameter for parameter in network.parameters() if parameter.is_floating_point())
    shift, scale = (channel_tensor(values, like.device) for values in (mean, std))
    rows = torch.arange(len(images)) if rows is None else rows.cpu()
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        chunks = (images[some].to(like.device) for some in rows.split(batch_size))
        return torch.cat([network(normalise(chunk, shift, scale).to(like.dtype)).float() for chunk in chunks])
    finally:
        for module, training in modes:
            module.training = training


def accuracy(network: nn.Module, images: Images, mean: Sequence[float], std: Sequence[float]) -> float:
    """Top-1 accuracy of a classifier, images [B, C, H, W] to logits [B, classes], in per cent; else as `predict`."""
    labels = predict(network, images.images, mean, std).argmax(dim=1)
    right = labels == images.labels.to(labels.device)
    return 100 * int(right.sum()) / len(images)


def known_features(
    backbone: nn.Module, train: Images, test: Images, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of the training images with a known class, and of the test images, on one device."""
    rows = train.known().nonzero().flatten()
    bank, features = predict(backbone, train.images, mean, std, rows=rows), predict(backbone, test.images, mean, std)
    return bank, train.labels[rows].to(bank.device), features, test.labels.to(bank.device)
