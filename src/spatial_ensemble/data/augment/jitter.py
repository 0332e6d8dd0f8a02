"""Colour jitter of float images [B, C, H, W] in [0, 1], each image with its own factors in its own order.

Brightness, contrast and saturation are one formula: a weighted sum of the pixel, its grey and the image's mean grey,
clamped to [0, 1]. A single channel has no colour: saturation, hue and grey leave it unchanged.
"""

import torch
from torch import Tensor

from spatial_ensemble.data.augment.common import check_images, per_image, replace_

LUMA = (0.2989, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Adjust brightness, contrast, saturation and hue, each image in its own order.

    Args:
        images: float [B, C, H, W] in [0, 1].
        factors: float [B, 4] on the CPU: three factors, 0 or more, and the shift of the hue; 1, 1, 1, 0 is neutral.
        order: int64 [B, 4] on the CPU: a permutation of BRIGHTNESS, CONTRAST, SATURATION, HUE.

    Returns:
        float [B, C, H, W] in [0, 1], torchvision's `adjust_brightness`, `adjust_contrast`, `adjust_saturation` to 1e-6
        and `adjust_hue` to 1e-5.
    """
    check_images(images, torch.float32)
    kinds, factors = order.T, factors.gather(1, order).T.float()
    for mixture, of_mean, kind, factor in zip(*_mixture(kinds, factors, images.shape[1]), kinds, factors, strict=True):
        images = _mixed(images, mixture, of_mean)
        replace_(images, (kind == HUE) & (factor != 0), adjust_hue, factor)
    return images


def _mixture(kind: Tensor, factor: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Weights of the pixel's channels, [..., C, C], and of those of the image's mean, [..., 1, C]; shape [...] in."""
    luma = torch.tensor([LUMA if channels == 3 else (1.0,)])
    share, of_grey, of_mean = (
        torch.where(fits, value, other)[..., None, None]
        for fits, value, other in (
            (kind == HUE, 1, factor),
            (kind == SATURATION, 1 - factor, 0),
            (kind == CONTRAST, 1 - factor, 0),
        )
    )
    return share * torch.eye(channels) + of_grey * luma, of_mean * luma


def _mixed(images: Tensor, mixture: Tensor, of_mean: Tensor) -> Tensor:
    pixels = images.flatten(2)
    mixture, of_mean = (values.to(images.device, non_blocking=True) for values in (mixture, of_mean))
    offset = torch.bmm(of_mean, pixels.mean(dim=2, keepdim=True))
    return torch.baddbmm(offset, mixture, pixels).clamp_(0, 1).view_as(images)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by `shift` of the full circle (float [B], -0.5 ... 0.5).

    With V the largest and V - D the smallest channel, and h the hue from 0 to 1, a channel is
    V - D clamp(min(k, 4 - k), 0, 1), k = 6 frac(h + n / 6), n = 5, 3, 1 for red, green, blue.
    """
    check_images(images, torch.float32)
    if images.shape[1] == 1:
        return images.clone()
    red, green, blue = images.unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    spread = largest - torch.minimum(torch.minimum(red, green), blue)
    is_red = (red == largest).float()
    is_green = (green == largest).float() * (1 - is_red)
    is_blue = 1 - is_red - is_green
    turn = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    hue = (turn / (6 * spread).clamp_(min=1e-12)).add_(is_green / 3).add_(is_blue * (2 / 3))
    hue = hue.add_(1 + per_image(shift, images)[:, 0]).unsqueeze(1)  # plus 1: frac is not the remainder below 0
    places = torch.arange(5, 0, -2, device=images.device).view(-1, 1, 1)
    k = (hue + places / 6).frac_().mul_(6)
    return largest.unsqueeze(1) - spread.unsqueeze(1) * torch.minimum(k, 4 - k).clamp_(0, 1)


def grey(images: Tensor) -> Tensor:
    """torchvision's `rgb_to_grayscale` to 1e-6, with as many channels as before."""
    check_images(images, torch.float32)
    if images.shape[1] == 1:
        return images.clone()
    red, green, blue = torch.split(images, 1, dim=1)
    luma: Tensor = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return luma.expand_as(images)


def solarize(images: Tensor) -> Tensor:
    """Invert values at or above 128 / 255, Pillow's default on bytes."""
    check_images(images, torch.float32)
    bright = (images >= 128 / 255).float()
    return bright.sub_(images).abs_()  # faster than torch.where, and the same
