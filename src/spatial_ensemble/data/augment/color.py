"""Colour operations on uint8 images [B, C, H, W], equal to Pillow's to the bit; each image has its own magnitude [B].

Pillow's four enhancers are one formula, `degenerate + factor * (image - degenerate)` in float32, truncated.
"""

import torch
from torch import Tensor

from spatial_ensemble.data.augment.common import check_images, per_image, to_uint8


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Brightness`: blend with black. Factor 0 is black, 1 the image, above 1 brighter.

    Example:
        >>> brightness(torch.full((1, 1, 1, 1), 100, dtype=torch.uint8), torch.tensor([0.5])).item()
        50
    """
    check_images(images)
    return _blend(torch.zeros((), device=images.device), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Color`: blend with the grey image; the identity where there is one channel."""
    check_images(images)
    return images.clone() if images.shape[1] == 1 else _blend(grey(images).float(), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Contrast`: blend with the image's mean grey."""
    check_images(images)
    pixels = images.shape[2] * images.shape[3]
    total = grey(images).sum(dim=(1, 2, 3), keepdim=True)
    mean = (2 * total + pixels) // (2 * pixels)  # rounded half up, in integers
    return _blend(mean.float(), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Sharpness`: blend with the smoothed image; the border keeps its values."""
    check_images(images)
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = images.float()
    # Pillow's SMOOTH: weight 5 in the middle, 1 around it. A thirteenth is never within 1/26 of a rounding tie,
    # so float32 rounds as the exact quotient does.
    smooth[:, :, 1:-1, 1:-1] = ((box + 4 * wide[:, :, 1:-1, 1:-1]).float() / 13 + 0.5).floor_()
    return _blend(smooth, images, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """`PIL.ImageOps.posterize`: keep the `bits` (1 ... 8) highest bits of every value."""
    check_images(images)
    return images & per_image(256 - 2 ** (8 - bits), images, torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """`PIL.ImageOps.solarize`: invert every value at or above `threshold` (0 ... 256)."""
    check_images(images)
    below = (images.to(torch.int16) - per_image(threshold, images, torch.int16)) >> 15  # the sign: -1 below, else 0
    return images ^ (~below).to(torch.uint8)  # many times faster than torch.where


def autocontrast(images: Tensor) -> Tensor:
    """`PIL.ImageOps.autocontrast`: stretch every channel to the full range."""
    check_images(images)
    low, high = images.amin((2, 3), keepdim=True).double(), images.amax((2, 3), keepdim=True).double()
    scale = high.new_full((), 255).div((high - low).clamp(min=1))  # 255 / tensor multiplies by a rounded reciprocal
    stretched = to_uint8(images * scale - low * scale)
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor) -> Tensor:
    """`PIL.ImageOps.equalize`: flatten the histogram of every channel."""
    check_images(images)
    values = images.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, values, torch.ones(1, dtype=torch.int32, device=images.device).expand_as(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    return torch.where(step.unsqueeze(3) > 0, table.gather(2, values).view_as(images), images)


def grey(images: Tensor) -> Tensor:
    """Pillow's luma (ITU-R 601, fixed point): int32 [B, 1, H, W]; a single channel is returned as it is."""
    channels = images.to(torch.int32)
    if images.shape[1] == 1:
        return channels
    red, green, blue = channels.unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).unsqueeze(1)


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    # A product and a sum, as in Pillow: a fused multiply-add would round differently.
    difference = (images - degenerate).mul_(per_image(factor, images, torch.float32))
    return to_uint8(difference.add_(degenerate).clamp_(0, 255))
