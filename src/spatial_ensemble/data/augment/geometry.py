"""Geometric operations on uint8 images [B, C, H, W], equal to Pillow's to the bit; each image has its own parameters.

`Image.transform(size, AFFINE, (a, b, c, d, e, f))` takes the output pixel (x, y) from (a x + b y + c, d x + e y + f),
nearest pixel, black outside.
"""

import torch
from torch import Tensor
from torch.nn import functional

from spatial_ensemble.data.augment.common import check_images, per_image, reflected


def affine(images: Tensor, fixed: Tensor) -> Tensor:
    """`PIL.Image.transform(..., AFFINE)` by coefficients from `fixed_point`, [B, 6]; H and W are below 32,768.

    Example:
        >>> shift = fixed_point(torch.tensor([[1.0, 0, 1, 0, 1, 0]]))
        >>> affine(torch.tensor([[[[1, 2]]]], dtype=torch.uint8), shift).tolist()
        [[[[2, 0]]]]
    """
    check_images(images)
    if fixed.shape != (len(images), 6):
        raise ValueError(f"expected coefficients [{len(images)}, 6], got {list(fixed.shape)}")
    height, width = images.shape[2:]
    a, b, c, d, e, f = fixed.to(images.device, non_blocking=True).view(-1, 6, 1, 1).unbind(1)
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device).view(-1, 1)
    # Positions outside are moved to a border of black pixels: clamping is faster than masking.
    column = (a * x + (b * y + c)).bitwise_right_shift_(16).clamp_(-1, width)
    row = (d * x + (e * y + f)).bitwise_right_shift_(16).clamp_(-1, height)
    source = row.mul_(width + 2).add_(column).add_(width + 3)
    return _gather(functional.pad(images, (1, 1, 1, 1)), source)


def fixed_point(matrix: Tensor) -> Tensor:
    """Pillow's coefficients [..., 6], shifted to pixel centres and rounded to 1 / 65536: int32 [..., 6]."""
    a, b, c, d, e, f = matrix.double().unbind(-1)
    middle = torch.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], dim=-1)
    return torch.floor(middle * 65536 + 0.5).to(torch.int32)


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """Coefficients, float64 [B, 6], of a counter-clockwise rotation about the centre, as `PIL.Image.rotate`."""
    angle = -torch.deg2rad(degrees.double())
    cosine, sine = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack([cosine, sine, cosine * -x + sine * -y + x, -sine, cosine, -sine * -x + cosine * -y + y], dim=1)


def identity_but(place: int, values: Tensor) -> Tensor:
    """Coefficients, float64 [B, 6], of the identity except that coefficient `place` is `values` [B].

    Places 1 and 3 shear along x and y, 2 and 5 translate.
    """
    matrix = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64, device=values.device).repeat(len(values), 1)
    matrix[:, place] = values
    return matrix


def padded_crop(images: Tensor, top: Tensor, left: Tensor, *, pad: int, flip: Tensor | None = None) -> Tensor:
    """Crop to the images' own size after reflection padding by `pad` pixels; then mirror where `flip` (bool [B]).

    `top` and `left` (integer [B], 0 ... 2 pad) are the corner of the crop in the padded image.

    Example:
        >>> images = torch.tensor([[[[1, 2, 3]] * 3]], dtype=torch.uint8)
        >>> padded_crop(images, torch.tensor([1]), torch.tensor([0]), pad=1)[0, 0, 0].tolist()
        [2, 1, 2]
    """
    check_images(images)
    height, width = images.shape[2:]
    if not 0 <= pad < min(height, width):
        raise ValueError(f"cannot pad {height} x {width} pixels by {pad}: take 0 ... {min(height, width) - 1}")
    row, column = (
        reflected((start.to(images.device, non_blocking=True) - pad).view(-1, 1) + _line(images, size), size)
        for start, size in ((top, height), (left, width))
    )
    if flip is not None:
        column = torch.where(flip.to(images.device, non_blocking=True).view(-1, 1), column.flip(1), column)
    return _gather(images, (row * width).unsqueeze(2) + column.unsqueeze(1))


def cutout(images: Tensor, row: Tensor, column: Tensor, side: Tensor, fill: int = 127) -> Tensor:
    """Paint a square of `side` pixels from the corner (`row`, `column`) on, all integer [B], clipped at the border."""
    check_images(images)
    y, x = _line(images, images.shape[2]).view(-1, 1), _line(images, images.shape[3])
    row, column, side = (per_image(values, images, torch.int64) for values in (row, column, side))
    rows = ((y >= row) & (y < row + side)).to(torch.uint8)
    columns = ((x >= column) & (x < column + side)).to(torch.uint8)
    hidden = rows * columns  # arithmetic on bytes: many times faster than torch.where
    return (images * (1 - hidden)).add_(hidden * fill)


def _line(images: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=images.device)


def _gather(images: Tensor, source: Tensor) -> Tensor:
    """Output pixel p of image i is its pixel source[i, p] in every channel: integer [B, h, w] to uint8 [B, C, h, w]."""
    count, channels = images.shape[:2]
    place = source.long().flatten(1).unsqueeze(1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, place).view(count, channels, *source.shape[1:])
