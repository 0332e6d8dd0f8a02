"""FixMatch's weak and strong augmentation of whole batches: every image its own operations, order and magnitudes.

Each is a function of the images and of uniform numbers in [0, 1), one row an image: what happens to an image depends
on its own row alone. Choices are made on the CPU, where the numbers are drawn, so that nobody waits for a GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from spatial_ensemble.data import ops_color, ops_geometry
from spatial_ensemble.data.ops_common import check_images

WEAK_DRAWS = 3
ROUND_DRAWS = 4
ROUNDS = 2
CUTOUT_DRAWS = 3
STRONG_DRAWS = WEAK_DRAWS + ROUNDS * ROUND_DRAWS + CUTOUT_DRAWS

# An operation of the pool takes the images, a level (int64 [B] in 1 ... 9) and a sign (-1 or 1, int64 [B]).
Operation = Callable[[Tensor, Tensor, Tensor], Tensor]

# Names, ranges and levels as in google-research/fixmatch and kekmodel/FixMatch-pytorch, RandAugmentMC(2, 10). Where
# they differ (the four enhancers, posterize, translations), as the paper's Table 12 has it, and kekmodel with it.
POOL: dict[str, Operation] = {
    "AutoContrast": lambda images, level, sign: ops_color.autocontrast(images),
    "Brightness": lambda images, level, sign: ops_color.brightness(images, _enhance(level)),
    "Color": lambda images, level, sign: ops_color.color(images, _enhance(level)),
    "Contrast": lambda images, level, sign: ops_color.contrast(images, _enhance(level)),
    "Equalize": lambda images, level, sign: ops_color.equalize(images),
    "Identity": lambda images, level, sign: images,
    "Posterize": lambda images, level, sign: ops_color.posterize(images, 4 + level * 4 // 10),
    "Rotate": lambda images, level, sign: ops_geometry.rotate(images, sign * level * 3),
    "Sharpness": lambda images, level, sign: ops_color.sharpness(images, _enhance(level)),
    "ShearX": lambda images, level, sign: ops_geometry.shear_x(images, sign * _tenth(level, 0.3)),
    "ShearY": lambda images, level, sign: ops_geometry.shear_y(images, sign * _tenth(level, 0.3)),
    "Solarize": lambda images, level, sign: ops_color.solarize(images, 256 - level * 256 // 10),
    "TranslateX": lambda images, level, sign: ops_geometry.translate_x(images, sign * _shift(level, images.shape[3])),
    "TranslateY": lambda images, level, sign: ops_geometry.translate_y(images, sign * _shift(level, images.shape[2])),
}


def weak(images: Tensor, uniforms: Tensor, *, flip: bool) -> Tensor:
    """Mirror with probability 1/2 where `flip`, then cut the old size out of the image padded by an eighth (reflected).

    Args:
        images: uint8 [B, C, S, S].
        uniforms: float64 [B, 3] in [0, 1): mirror, row, column.
        flip: whether a mirror image keeps its class.

    Returns:
        uint8 [B, C, S, S].

    Source: FixMatch (arXiv 2001.07685), section 2.3: 4 reflected pixels at a side of 32.
    """
    check_images(images)
    size = images.shape[3]
    pad = size // 8
    top, left = _integers(uniforms[:, 1:3], 2 * pad + 1).unbind(1)
    return ops_geometry.crop(
        ops_geometry.reflect_pad(images, pad), top, left, size, uniforms[:, 0] < 0.5 if flip else None
    )


def strong(images: Tensor, uniforms: Tensor, *, flip: bool) -> Tensor:
    """The weak augmentation, then two operations of the pool, then Cutout.

    Args:
        images: uint8 [B, C, S, S].
        uniforms: float64 [B, STRONG_DRAWS] in [0, 1).
        flip: whether a mirror image keeps its class.

    Returns:
        uint8 [B, C, S, S].

    Source: FixMatch (arXiv 2001.07685), section 2.3 and Table 12.
    """
    first, *rounds, last = torch.split(uniforms, [WEAK_DRAWS, *[ROUND_DRAWS] * ROUNDS, CUTOUT_DRAWS], dim=1)
    images = weak(images, first, flip=flip)
    for draws in rounds:
        images = _one_of_pool(images, draws)
    size = images.shape[3]
    side = _integers(last[:, 0], size // 2 + 1)
    row, column = (_integers(last[:, place], size) - side // 2 for place in (1, 2))
    return ops_geometry.cutout(images, row, column, side)


def _one_of_pool(images: Tensor, uniforms: Tensor) -> Tensor:
    """With probability 1/2 one operation of the pool; uniforms [B, 4]: whether, which, how much, which way."""
    names = list(POOL)
    which = torch.where(uniforms[:, 0] < 0.5, _integers(uniforms[:, 1], len(names)), names.index("Identity"))
    level = 1 + _integers(uniforms[:, 2], 9)
    sign = torch.where(uniforms[:, 3] < 0.5, -1, 1)
    # Sorted by operation, the images of one operation are neighbours, and their number is known without asking a GPU.
    order = which.argsort()
    sizes = torch.bincount(which, minlength=len(names)).tolist()
    groups = zip(*(values[order].split(sizes) for values in (level, sign)), strict=True)
    chunks = images.index_select(0, order.to(images.device, non_blocking=True)).split(sizes)
    done = [
        POOL[name](chunk, level, sign) if len(chunk) else chunk
        for name, chunk, (level, sign) in zip(names, chunks, groups, strict=True)
    ]
    return torch.cat(done).index_select(0, order.argsort().to(images.device, non_blocking=True))


def _integers(uniforms: Tensor, count: int) -> Tensor:
    """Uniform integers 0 ... count - 1 from uniform numbers in [0, 1)."""
    return (uniforms * count).long()


def _tenth(level: Tensor, maximum: float) -> Tensor:
    return level.double() * maximum / 10


def _enhance(level: Tensor) -> Tensor:
    """0.14 ... 0.86, of the paper's 0.05 ... 0.95."""
    return _tenth(level, 0.9) + 0.05


def _shift(level: Tensor, size: int) -> Tensor:
    """Whole pixels, up to 0.27 of the side."""
    return (_tenth(level, 0.3) * size).long()
