"""Accuracy of a backbone's nearest neighbours: no training, hence a measure to follow while training."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.images import Images
from spatial_ensemble.evaluation.predict import predict


@torch.no_grad()
def knn_predict(
    features: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.1,
    at_once: int = 512,
) -> Tensor:
    """The class that the k nearest neighbours vote for, each with the weight exp(cosine / temperature).

    Args:
        features: to classify, [N, D].
        bank: of known class, [M, D].
        bank_labels: int64 [M], 0 or more.
        k: number of neighbours; all M where there are fewer.
        temperature: above 0; a small one gives the nearest more to say.
        at_once: features at a time, each with its M similarities in memory.

    Returns:
        int64 [N].

    Source: Wu et al. 2018, section 3.4; k = 200 and temperature 0.1 as in MoCo's CIFAR demo.

    Example:
        >>> knn_predict(torch.tensor([[1.0, 0.1]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([3, 5]), k=1)
        tensor([3])
    """
    bank, k = F.normalize(bank, dim=1), min(k, len(bank))
    classes = int(bank_labels.max()) + 1
    predictions = []
    for chunk in torch.split(F.normalize(features, dim=1), at_once):
        similarities, neighbours = (chunk @ bank.T).topk(k, dim=1)
        weights = (similarities / temperature).softmax(dim=1)  # softmax only scales a row of exp(s / T): no overflow
        votes = weights.new_zeros(len(chunk), classes).scatter_add_(1, bank_labels[neighbours], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def knn_accuracy(
    backbone: nn.Module,
    train: Images,
    test: Images,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    k: int = 200,
    temperature: float = 0.1,
) -> float:
    """The share of test images whose neighbours among the labelled training images vote for their class, in per cent.

    Args:
        backbone: images [B, C, H, W] to features [B, D].
        train, test: uint8 images and their labels; training images of label -1 (unknown) are left out.
        mean, std: of each channel of the training images, in units of the full range.
        k, temperature: as for `knn_predict`.

    Raises:
        UserError: no training image has a known label.
    """
    known = train.known().nonzero().flatten()
    bank = predict(backbone, train.images, mean, std, rows=known)
    features = predict(backbone, test.images, mean, std)
    labels, answers = (tensor.to(bank.device) for tensor in (train.labels[known], test.labels))
    predictions = knn_predict(features, bank, labels, k=k, temperature=temperature)
    return 100 * (predictions == answers).float().mean().item()
