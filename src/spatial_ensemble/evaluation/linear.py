"""Accuracy of a linear classifier on a frozen backbone's features."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.images import Images
from spatial_ensemble.evaluation.predict import predict
from spatial_ensemble.seeding import generator


@dataclass(frozen=True)
class Protocol:
    """How a probe is trained: SGD with momentum 0.9, no weight decay, the learning rate falling along a cosine to 0.

    `lr` is that of 256 images a batch; `norm` puts a BatchNorm1d behind the linear layer.
    """

    lr: float
    epochs: int
    norm: bool


# standard: lightly's ImageNet benchmark; paper: Huang et al. 2021 (shared with its BYOL code base).
PROTOCOLS = {"standard": Protocol(lr=0.1, epochs=90, norm=False), "paper": Protocol(lr=0.2, epochs=80, norm=True)}


def linear_probe(
    features: Tensor, labels: Tensor, classes: int, protocol: Protocol, *, seed: int, batch_size: int = 256
) -> nn.Module:
    """Train a linear classifier on features.

    Args:
        features: float32 [N, D].
        labels: int64 [N], from 0 to classes - 1.
        classes: number of classes.
        protocol: how.
        seed: of the initial weights and of the order of the batches.
        batch_size: features a step, all N where there are fewer; the learning rate goes with it.

    Returns:
        A module from features [B, D] to logits [B, classes], in eval mode.
    """
    batch_size = min(batch_size, len(features))
    peak, steps = protocol.lr * batch_size / 256, len(features) // batch_size
    # The same in whatever mode the caller evaluates; autocast would keep its first copy of the weights for all steps.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
        # Without torch's own initial values, which would move its global generator.
        linear = nn.utils.skip_init(nn.Linear, features.shape[1], classes)
        nn.init.normal_(linear.weight, std=0.01, generator=generator(seed, "linear probe"))
        nn.init.zeros_(linear.bias)
        probe = nn.Sequential(linear, nn.BatchNorm1d(classes)) if protocol.norm else nn.Sequential(linear)
        probe.to(features.device)
        optimizer = torch.optim.SGD(probe.parameters(), lr=peak, momentum=0.9)
        for epoch in range(protocol.epochs):
            order = torch.randperm(len(features), generator=generator(seed, "linear probe", epoch)).to(features.device)
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = peak * (1 + cos(pi * (epoch + step / steps) / protocol.epochs)) / 2
                batch = order[step * batch_size : (step + 1) * batch_size]
                optimizer.zero_grad()
                F.cross_entropy(probe(features[batch]), labels[batch]).backward()
                optimizer.step()
    return probe.eval()


def linear_accuracy(
    backbone: nn.Module,
    train: Images,
    test: Images,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    protocol: Literal["standard", "paper"] = "standard",
    seed: int = 0,
) -> float:
    """Test accuracy, in per cent, of a linear classifier trained on the frozen features of the training images.

    Features are computed once, of images as they are; the published ImageNet protocols crop and flip the training
    images anew in every epoch.

    Args:
        backbone: images [B, C, H, W] to features [B, D].
        train, test: uint8 images and their labels; training images of label -1 (unknown) are left out.
        mean, std: of each channel of the training images, in units of the full range.
        protocol: "standard" (lr 0.1 for a batch of 256, 90 epochs), or "paper" (BatchNorm1d behind the linear layer,
            lr 0.2 for a batch of 256, 80 epochs).
        seed: of the probe.

    Raises:
        UserError: no training image has a known label.
    """
    known = train.known().nonzero().flatten()
    features = predict(backbone, train.images, mean, std, rows=known)
    labels, answers = (tensor.to(features.device) for tensor in (train.labels[known], test.labels))
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    probe = linear_probe(features, labels, classes, PROTOCOLS[protocol], seed=seed)
    features = predict(backbone, test.images, mean, std)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        predictions: Tensor = probe(features).argmax(dim=1)
    return 100 * (predictions == answers).float().mean().item()
