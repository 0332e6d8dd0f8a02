"""kNN accuracy of a backbone: needs no training, so it can be tracked during training.

lightly's `knn_predict` does not fit: its exp(cosine / temperature) overflows at small temperatures, and its one-hot
votes take N k classes numbers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.images import Images
from spatial_ensemble.evaluation.predict import known_features


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
    """Weighted vote of the k nearest neighbours, each with the weight exp(cosine / temperature).

    Args:
        features: [N, D], to classify.
        bank: [M, D], of known class.
        bank_labels: int64 [M], 0 or more.
        k: number of neighbours; all M if there are fewer.
        temperature: above 0; a smaller one gives the nearest more weight.
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
    """kNN accuracy on the test images, with the labelled training images as the bank, in per cent.

    Args:
        backbone: images [B, C, H, W] to features [B, D].
        train, test: uint8 images and their labels; training images of label -1 (unknown) are ignored.
        mean, std: per channel of the training images, in units of the full range.
        k, temperature: as for `knn_predict`.

    Raises:
        UserError: no training image has a known class.
    """
    bank, labels, features, answers = known_features(backbone, train, test, mean, std)
    predictions = knn_predict(features, bank, labels, k=k, temperature=temperature)
    return 100 * (predictions == answers).float().mean().item()
