"""Backbones from torchvision and timm, imported on demand."""

import itertools

from torch import nn


def resnet(name: str, *, channels: int, size: int) -> nn.Module:
    """torchvision's residual network without its classifier."""
    from torchvision import models

    network: nn.Module = models.get_model(name, weights=None)
    network.num_features = network.fc.in_features  # type: ignore[union-attr]
    network.fc = nn.Identity()
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network


def resnet_cifar(name: str, *, channels: int, size: int) -> nn.Module:
    """The same for small images: a 3x3 stem of stride 1 and no max-pool (SimCLR 2020, appendix B.9)."""
    network = resnet(name, channels=channels, size=size)
    network.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def resnet_small(*, channels: int, size: int) -> nn.Module:
    """Ten layers of torchvision's residual blocks for small images on a CPU: 32 to 256 filters, a 3x3 stem of stride 2.

    An image of 32 x 32 pixels takes 16 million multiplications; `resnet18-cifar` takes 556 million.
    """
    from torchvision.models.resnet import BasicBlock

    widths = [32, 32, 64, 128, 256]
    layers = [nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    for inputs, outputs in itertools.pairwise(widths):
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))
        layers.append(BasicBlock(inputs, outputs, *([2, shortcut] if inputs < outputs else [])))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    network.num_features = widths[-1]  # type: ignore[assignment]
    return network


def vit(dim: int, depth: int, heads: int, *, channels: int, size: int) -> nn.Module:
    """timm's vision transformer, with patches of 16 pixels from 128 pixels up, and of an eighth of the side below.

    Images are padded with zeros at the right and lower edges to whole patches. Other image sizes (DINO's local crops)
    interpolate the position embedding.
    """
    from timm.models.vision_transformer import VisionTransformer

    patch = 16 if size >= 128 else max(1, size // 8)
    network: nn.Module = VisionTransformer(
        img_size=-(-size // patch) * patch,  # as padded; a smaller position embedding would be interpolated
        patch_size=patch,
        in_chans=channels,
        num_classes=0,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
    return network
