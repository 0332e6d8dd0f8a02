"""Crops, resizing and blur of float images [B, C, H, W] as products with small matrices, each image with its own.

An output line is a weighted sum of input lines: crop, mirror and antialiased bilinear interpolation are one matrix per
side, a Gaussian blur is another. On a CPU this is faster than gathering four neighbours, and exact.
"""

import torch
from torch import Tensor

from spatial_ensemble.data.augment.common import check_images, per_image, reflected

BOX_TRIES = 10
BOX_DRAWS = 2 * BOX_TRIES + 2


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int, flip: Tensor | None = None
) -> Tensor:
    """torchvision's `resized_crop` to `size` x `size`, bilinear with antialiasing, to 1e-5; mirrored where `flip`.

    The box of each image (integer [B], pixels) lies inside the image.
    """
    check_images(images, torch.float32)
    if size < 1:
        raise ValueError(f"a crop of {size} x {size} pixels is empty: take a size of 1 or more")
    rows = _line_weights(per_image(top, images), per_image(height, images), images.shape[2], size)
    columns = _line_weights(per_image(left, images), per_image(width, images), images.shape[3], size, flip)
    return _weighted(images, rows, columns)


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """torchvision's `gaussian_blur` with a kernel of 2 reach + 1, to 1e-5; `sigma` is float [B], in pixels."""
    check_images(images, torch.float32)
    height, width = images.shape[2:]
    most = min(height, width) - 1
    if not 0 <= reach <= most:
        raise ValueError(f"a blur of reach {reach} does not fit {height} x {width} pixels: take 0 ... {most}")
    distance = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.softmax(-0.5 * (distance / per_image(sigma, images).view(-1, 1)) ** 2, dim=1)
    rows, columns = (torch.tensordot(kernel, _reflections(side, distance), dims=1) for side in (height, width))
    return _weighted(images, rows, columns)


def random_boxes(uniforms: Tensor, size: int, scale: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes of random area and shape, as `torchvision.transforms.RandomResizedCrop` draws them on square images.

    Of ten tries with an area in `scale` and an aspect ratio from 3/4 to 4/3 (log-uniform) the first box that fits is
    taken; if none fits, the whole image.

    Args:
        uniforms: float64 [B, BOX_DRAWS] in [0, 1).
        size: side of the images, pixels.
        scale: smallest and largest fraction of the image's area.

    Returns:
        top, left, height, width: int64 [B], pixels.
    """
    areas, ratios = uniforms[:, :BOX_TRIES], uniforms[:, BOX_TRIES : 2 * BOX_TRIES]
    side = size * torch.sqrt(scale[0] + (scale[1] - scale[0]) * areas)
    stretch = (4 / 3) ** (ratios - 0.5)  # the square root of the aspect ratio
    boxes = torch.stack([side / stretch, side * stretch]).round().long()
    fits = ((boxes > 0) & (boxes <= size)).all(dim=0)
    first = fits.long().argmax(dim=1, keepdim=True)
    height, width = (box.gather(1, first).squeeze(1).where(fits.any(dim=1), size) for box in boxes)
    top, left = (((size - box + 1) * uniforms[:, place]).long() for box, place in ((height, -2), (width, -1)))
    return top, left, height, width


def _line_weights(start: Tensor, length: Tensor, inputs: int, outputs: int, flip: Tensor | None = None) -> Tensor:
    """Weight of each input line of [start, start + length) in each output line: float [B, outputs, inputs]."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    place = torch.arange(outputs, device=start.device).view(-1, 1) + 0.5
    if flip is not None:
        place = torch.where(flip.to(start.device, non_blocking=True).view(-1, 1, 1), outputs - place, place)
    step = length / outputs
    line = torch.arange(inputs, device=start.device) + 0.5
    weights = (1 - (line - (start + place * step)).abs_() / step.clamp(min=1)).clamp_(min=0)
    weights *= (line > start) & (line < start + length)
    return weights / weights.sum(dim=2, keepdim=True)


def _reflections(size: int, distance: Tensor) -> Tensor:
    """1 where line i, moved by distance k and reflected at the ends, is line j: float [K, size, size]."""
    lines = torch.arange(size, device=distance.device)
    return (reflected(lines + distance.view(-1, 1), size).unsqueeze(2) == lines).float()


def _weighted(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows [B, h, H] @ images [B, C, H, W] @ columns^T [B, W, w]: float [B, C, h, w]."""
    count, channels, height, width = images.shape
    wide = torch.bmm(images.reshape(count, channels * height, width), columns.transpose(1, 2))
    rows = rows.unsqueeze(1).expand(-1, channels, -1, -1).flatten(0, 1)
    done = torch.bmm(rows, wide.view(count * channels, height, wide.shape[2]))
    return done.view(count, channels, *done.shape[1:])
