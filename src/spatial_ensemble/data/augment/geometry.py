"""Operations that move pixels: uint8 [B, C, H, W], each image with its own magnitude, equal to Pillow's to the bit.

`Image.transform(size, AFFINE, (a, b, c, d, e, f))` takes the output pixel (x, y) from (a x + b y + c, d x + e y + f),
nearest pixel, black outside.
"""

import torch
from torch import Tensor
from torch.nn import functional

from spatial_ensemble.data.augment.common import check_images, per_image


def affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Take every output pixel from its affine place in the image, nearest pixel, black outside.

    Args:
        images: uint8 [B, C, H, W], H and W below 32,768.
        matrix: float64 [B, 6], Pillow's coefficients (output to input, in pixels).

    Returns:
        uint8 [B, C, H, W], equal to `PIL.Image.transform(..., AFFINE)`, which counts in 16.16 fixed point.

    Example:
        >>> affine(torch.tensor([[[[1, 2]]]], dtype=torch.uint8), torch.tensor([[1.0, 0, 1, 0, 1, 0]])).tolist()
        [[[[2, 0]]]]
    """
    check_images(images)
    if matrix.shape != (len(images), 6):
        raise ValueError(f"expected a matrix [{len(images)}, 6], got {list(matrix.shape)}")
    return affine_fixed(images, fixed_point(matrix))


def fixed_point(matrix: Tensor) -> Tensor:
    """Pillow's coefficients [..., 6] moved to the middle of the pixels and rounded to 1 / 65536: int32 [..., 6]."""
    a, b, c, d, e, f = matrix.double().unbind(-1)
    middle = torch.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], dim=-1)
    return torch.floor(middle * 65536 + 0.5).to(torch.int32)


def affine_fixed(images: Tensor, fixed: Tensor) -> Tensor:
    """`affine` by the coefficients that `fixed_point` returns, int32 [B, 6]."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = fixed.to(images.device, non_blocking=True).view(-1, 6, 1, 1).unbind(1)
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device).view(-1, 1)
    # Places outside are moved to a border of black pixels: clamping is faster than asking which places are inside.
    column = (a * x + (b * y + c)).bitwise_right_shift_(16).clamp_(-1, width)
    row = (d * x + (e * y + f)).bitwise_right_shift_(16).clamp_(-1, height)
    source = row.mul_(width + 2).add_(column).add_(width + 3)
    return _gather(functional.pad(images, (1, 1, 1, 1)), source)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn counter-clockwise about the middle.

    Args:
        images: uint8 [B, C, H, W].
        degrees: float [B].

    Returns:
        uint8 [B, C, H, W], equal to `PIL.Image.rotate(degrees)`.
    """
    check_images(images)
    return affine(images, rotation(degrees, *images.shape[2:]))


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """Pillow's coefficients, float64 [B, 6], of a turn by `degrees` [B] counter-clockwise about the middle."""
    angle = -torch.deg2rad(degrees.double())
    cosine, sine = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack([cosine, sine, cosine * -x + sine * -y + x, -sine, cosine, -sine * -x + cosine * -y + y], dim=1)


def shear_x(images: Tensor, amount: Tensor) -> Tensor:
    """Move row y by `amount` * y pixels to the left.

    Args:
        images: uint8 [B, C, H, W].
        amount: float [B], pixels a row.

    Returns:
        uint8 [B, C, H, W], equal to Pillow's AFFINE (1, amount, 0, 0, 1, 0).
    """
    return affine(images, unit_but(1, amount))


def shear_y(images: Tensor, amount: Tensor) -> Tensor:
    """Move column x by `amount` * x pixels up.

    Args:
        images: uint8 [B, C, H, W].
        amount: float [B], pixels a column.

    Returns:
        uint8 [B, C, H, W], equal to Pillow's AFFINE (1, 0, 0, amount, 1, 0).
    """
    return affine(images, unit_but(3, amount))


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """Move the image by whole `pixels` to the left.

    Args:
        images: uint8 [B, C, H, W].
        pixels: integer [B].

    Returns:
        uint8 [B, C, H, W], equal to Pillow's AFFINE (1, 0, pixels, 0, 1, 0).
    """
    return affine(images, unit_but(2, pixels))


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Move the image by whole `pixels` up.

    Args:
        images: uint8 [B, C, H, W].
        pixels: integer [B].

    Returns:
        uint8 [B, C, H, W], equal to Pillow's AFFINE (1, 0, 0, 0, 1, pixels).
    """
    return affine(images, unit_but(5, pixels))


def unit_but(place: int, values: Tensor) -> Tensor:
    """Pillow's coefficients, float64 [B, 6], of the identity but for one of them: `values` [B]."""
    matrix = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64, device=values.device).repeat(len(values), 1)
    matrix[:, place] = values
    return matrix


def padded_crop(images: Tensor, top: Tensor, left: Tensor, *, pad: int, flip: Tensor | None = None) -> Tensor:
    """Cut the images' own size out of the images, reflected by `pad` pixels at every side; then mirror where `flip`.

    Args:
        images: uint8 [B, C, H, W].
        top, left: integer [B], 0 ... 2 pad: where the cut begins in the padded image.
        pad: pixels; the border pixel itself is not repeated.
        flip: bool [B].

    Returns:
        uint8 [B, C, H, W].

    Raises:
        ValueError: where `pad` is negative or reaches the size of the images.

    Example:
        >>> images = torch.tensor([[[[1, 2, 3]] * 3]], dtype=torch.uint8)
        >>> padded_crop(images, torch.tensor([1]), torch.tensor([0]), pad=1)[0, 0, 0].tolist()
        [2, 1, 2]
    """
    check_images(images)
    height, width = images.shape[2:]
    if not 0 <= pad < min(height, width):
        raise ValueError(f"cannot pad {height} x {width} pixels by {pad}: take 0 ... {min(height, width) - 1}")
    top, left = (start.to(images.device, non_blocking=True) for start in (top, left))
    row, column = _reflected(top - pad, height), _reflected(left - pad, width)
    if flip is not None:
        column = torch.where(flip.to(images.device, non_blocking=True).view(-1, 1), column.flip(1), column)
    return _gather(images, (row * width).unsqueeze(2) + column.unsqueeze(1))


def _reflected(start: Tensor, size: int) -> Tensor:
    """Pixels start ... start + size - 1 of a line of `size` pixels reflected at both ends, int64 [B, size]."""
    place = (start.view(-1, 1) + torch.arange(size, device=start.device)).abs()
    return torch.minimum(place, 2 * (size - 1) - place)


def _gather(images: Tensor, source: Tensor) -> Tensor:
    """Output pixel p of image i is its pixel source[i, p] in every channel: integer [B, h, w] to uint8 [B, C, h, w]."""
    count, channels = images.shape[:2]
    place = source.long().flatten(1).unsqueeze(1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, place).view(count, channels, *source.shape[1:])


def cutout(images: Tensor, row: Tensor, column: Tensor, side: Tensor, fill: int = 127) -> Tensor:
    """Paint a grey square over every image, cut off at its border.

    Args:
        images: uint8 [B, C, H, W].
        row, column: integer [B], where the square begins, pixels; may lie outside the image.
        side: integer [B], pixels.
        fill: value of the square.

    Returns:
        uint8 [B, C, H, W].
    """
    check_images(images)
    y = torch.arange(images.shape[2], device=images.device).view(-1, 1)
    x = torch.arange(images.shape[3], device=images.device)
    row, column, side = (per_image(values, images, torch.int64) for values in (row, column, side))
    rows = ((y >= row) & (y < row + side)).to(torch.uint8)
    columns = ((x >= column) & (x < column + side)).to(torch.uint8)
    hidden = rows * columns  # arithmetic on bytes: many times faster than torch.where
    return (images * (1 - hidden)).add_(hidden * fill)
