"""Operations that move pixels: uint8 [B, C, H, W], each image with its own magnitude, equal to Pillow's to the bit.

`Image.transform(size, AFFINE, (a, b, c, d, e, f))` takes the output pixel (x, y) from (a x + b y + c, d x + e y + f),
nearest pixel, black outside.
"""

import torch
from torch import Tensor

from spatial_ensemble.data.ops_common import check_images, per_image


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
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrix.double().unbind(1)
    middle = torch.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], dim=1)
    fixed = torch.floor(middle * 65536 + 0.5).to(torch.int32).to(images.device, non_blocking=True)
    a, b, c, d, e, f = fixed.view(-1, 6, 1, 1).unbind(1)
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device).view(-1, 1)
    column = (a * x + (b * y + c)) >> 16
    row = (d * x + (e * y + f)) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = (row * width + column).mul_(inside).long().view(len(images), 1, -1)
    moved = images.flatten(2).gather(2, source.expand(-1, images.shape[1], -1)).view_as(images)
    return moved.mul_(inside.unsqueeze(1))


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
    return affine(images, _matrix(amount, 1))


def shear_y(images: Tensor, amount: Tensor) -> Tensor:
    """Move column x by `amount` * x pixels up.

    Args:
        images: uint8 [B, C, H, W].
        amount: float [B], pixels a column.

    Returns:
        uint8 [B, C, H, W], equal to Pillow's AFFINE (1, 0, 0, amount, 1, 0).
    """
    return affine(images, _matrix(amount, 3))


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """Move the image by whole `pixels` to the left.

    Args:
        images: uint8 [B, C, H, W].
        pixels: integer [B].

    Returns:
        uint8 [B, C, H, W], equal to Pillow's AFFINE (1, 0, pixels, 0, 1, 0).
    """
    return affine(images, _matrix(pixels, 2))


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Move the image by whole `pixels` up.

    Args:
        images: uint8 [B, C, H, W].
        pixels: integer [B].

    Returns:
        uint8 [B, C, H, W], equal to Pillow's AFFINE (1, 0, 0, 0, 1, pixels).
    """
    return affine(images, _matrix(pixels, 5))


def _matrix(values: Tensor, place: int) -> Tensor:
    matrix = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64, device=values.device).repeat(len(values), 1)
    matrix[:, place] = values
    return matrix


def reflect_pad(images: Tensor, pad: int) -> Tensor:
    """Mirror `pad` pixels at every side, the border pixel itself not repeated.

    Args:
        images: uint8 [B, C, H, W].
        pad: pixels, 0 ... min(H, W) - 1.

    Returns:
        uint8 [B, C, H + 2 pad, W + 2 pad].

    Raises:
        ValueError: where `pad` is negative or reaches the size of the images.
    """
    check_images(images)
    if not 0 <= pad < min(images.shape[2:]):
        raise ValueError(
            f"pad {pad} does not fit images of {images.shape[2]} x {images.shape[3]} pixels: take 0 ... side - 1"
        )
    if pad == 0:
        return images
    count, channels, height, width = images.shape
    padded = images.new_empty(count, channels, height + 2 * pad, width + 2 * pad)
    padded[:, :, pad:-pad, pad:-pad] = images
    padded[:, :, :pad, :] = padded[:, :, pad + 1 : 2 * pad + 1, :].flip(2)
    padded[:, :, -pad:, :] = padded[:, :, -2 * pad - 1 : -pad - 1, :].flip(2)
    padded[:, :, :, :pad] = padded[:, :, :, pad + 1 : 2 * pad + 1].flip(3)
    padded[:, :, :, -pad:] = padded[:, :, :, -2 * pad - 1 : -pad - 1].flip(3)
    return padded


def crop(images: Tensor, top: Tensor, left: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut a square out of every image, and mirror it left to right where `flip` says so.

    Args:
        images: uint8 [B, C, H, W].
        top, left: integer [B], pixels, 0 ... H - size and 0 ... W - size.
        size: side of the square, pixels.
        flip: bool [B].

    Returns:
        uint8 [B, C, size, size].

    Raises:
        ValueError: where `size` is larger than the images.

    Example:
        >>> images = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
        >>> crop(images, torch.tensor([1]), torch.tensor([0]), 2, torch.tensor([True])).tolist()
        [[[[4, 3], [7, 6]]]]
    """
    check_images(images)
    count, channels, height, width = images.shape
    if not 0 < size <= min(height, width):
        raise ValueError(f"cannot cut {size} x {size} pixels out of images of {height} x {width}")
    start = top * width + left
    if flip is not None:  # behind the images lie their mirror images, where the same square begins elsewhere
        start = start + flip * (images.numel() + width - size - 2 * left)
        images = torch.cat([images, images.flip(3)])
    planes = torch.arange(count * channels, device=start.device).view(count, channels, 1) * (height * width)
    rows = start.view(-1, 1, 1) + planes + torch.arange(size, device=start.device) * width
    # Every window of `size` neighbouring pixels is a row of this view, so that whole rows are copied at once.
    windows = images.contiguous().view(-1).unfold(0, size, 1)
    return windows.index_select(0, rows.view(-1).to(images.device, non_blocking=True)).view(count, channels, size, size)


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
    y = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    x = torch.arange(images.shape[3], device=images.device)
    row, column, side = (per_image(values, images, torch.int64) for values in (row, column, side))
    hidden = ((y >= row) & (y < row + side) & (x >= column) & (x < column + side)).to(torch.uint8)
    return images * (1 - hidden) + hidden * fill
