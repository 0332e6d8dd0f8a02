"""Backbones: images to features. Heads belong to the methods."""

import pkgutil
from collections.abc import Callable
from functools import partial

from torch import nn

from spatial_ensemble.errors import UserError
from spatial_ensemble.networks.library import resnet, resnet_cifar, resnet_small, vit
from spatial_ensemble.networks.small import SmallNetwork
from spatial_ensemble.networks.wide_resnet import WideResNet

__all__ = ["SmallNetwork", "WideResNet", "build", "default_network", "get", "names"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "small": lambda channels, size: SmallNetwork(channels),
    "wrn-28-2": lambda channels, size: WideResNet(28, 2, channels),
    "wrn-28-8": lambda channels, size: WideResNet(28, 8, channels),
    "resnet10-small": resnet_small,
    "resnet18-cifar": partial(resnet_cifar, "resnet18"),
    "resnet18": partial(resnet, "resnet18"),
    "resnet50": partial(resnet, "resnet50"),
    "vit-mini": partial(vit, 128, 4, 4),
    "vit-tiny": partial(vit, 192, 12, 3),
}


def names() -> list[str]:
    """Names of the backbones that `build` knows."""
    return list(_BUILDERS)


def default_network(size: int) -> str:
    """Name of the default backbone for square images of `size` pixels a side.

    Example:
        >>> default_network(8), default_network(32), default_network(224)
        ('small', 'wrn-28-2', 'resnet50')
    """
    return "small" if size <= 16 else "wrn-28-2" if size <= 64 else "resnet50"


def get(name: str) -> Callable[..., nn.Module]:
    """What `build` calls: a callable `(*, channels, size) -> nn.Module`."""
    try:
        builder: Callable[..., nn.Module] = _BUILDERS.get(name) or pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"network '{name}' is not known: use one of {', '.join(names())}, or the dotted path of your own ({error})"
        ) from error
    return builder


def build(name: str, *, channels: int, size: int) -> nn.Module:
    """A backbone with new weights, drawn from torch's global generator.

    Args:
        name: one of `names()`, or the dotted path of your own callable `(*, channels, size) -> nn.Module`.
        channels: channels of the images.
        size: side of the images, pixels.

    Returns:
        A module from images [B, channels, H, W] to features [B, num_features], with the integer `num_features`.

    Raises:
        UserError: an unknown name, or a network with another signature or without `num_features`.

    Example:
        >>> import torch
        >>> build("small", channels=1, size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 128])
    """
    builder = get(name)
    try:
        network: nn.Module = builder(channels=channels, size=size)
    except TypeError as error:
        raise UserError(f"network '{name}' cannot be built from `channels` and `size`: {error}") from error
    if not isinstance(getattr(network, "num_features", None), int):
        raise UserError(f"network '{name}' has no integer `num_features`: set it to the length of its feature vectors")
    return network
