"""Linear probe: accuracy of a linear classifier on the features of a frozen backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.images import Images
from spatial_ensemble.evaluation.predict import known_features
from spatial_ensemble.seeding import generator


@dataclass(frozen=True)
class Protocol:
    """Training of a probe: SGD with momentum 0.9, no weight decay, cosine decay of the learning rate to 0.

    `lr` is for a batch of 256; `norm` appends a BatchNorm1d to the linear layer.
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
        seed: of the initial weights and of the order of the batches.
        batch_size: features per step, all N if there are fewer; the learning rate scales with it.

    Returns:
        A module from features [B, D] to logits [B, classes], in eval mode.
    """
    batch_size = min(batch_size, len(features))
    peak, steps = protocol.lr * batch_size / 256, len(features) // batch_size
    # The same in every mode of the caller; autocast would cache its first copy of the weights for all steps.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
        # Without torch's own initialisation, which would move its global generator.
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

    Features are computed once, of unaugmented images; the published ImageNet protocols crop and flip the training
    images anew in every epoch.

    Args:
        backbone, train, test, mean, std: as for `knn_accuracy`.
        protocol: "standard" (lr 0.1 for a batch of 256, 90 epochs), or "paper" (BatchNorm1d after the linear layer,
            lr 0.2 for a batch of 256, 80 epochs).
        seed: of the probe.

    Raises:
        UserError: no training image has a known class.
    """
    bank, labels, features, answers = known_features(backbone, train, test, mean, std)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    probe = linear_probe(bank, labels, classes, PROTOCOLS[protocol], seed=seed)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        predictions: Tensor = probe(features).argmax(dim=1)
    return 100 * (predictions == answers).float().mean().item()
