"""FixMatch's weak and strong augmentation of whole batches: each image its own operations, order and magnitudes.

Both are functions of the images and of uniform numbers in [0, 1), one row per image, which alone decides what happens
to it. Choices are made on the CPU, where the numbers are drawn, so that nothing waits for a GPU.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from spatial_ensemble.data.augment import color, geometry
from spatial_ensemble.data.augment.common import check_images

ROUNDS = 2
WEAK_DRAWS = 3
STRONG_DRAWS = WEAK_DRAWS + ROUNDS * 2 + 3

# Names, ranges and levels as in google-research/fixmatch and kekmodel/FixMatch-pytorch, RandAugmentMC: an operation has
# level 1 ... 9 of 10 and a random sign. Where they differ (the four enhancers, posterize, translations), as kekmodel
# and the appendix of FixMatch's paper have it.
LEVELS = torch.tensor([*range(-9, 0), *range(1, 10)], dtype=torch.float64)
# level [L] and height and width of the images -> coefficients [L, 6]
GEOMETRY: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "Rotate": lambda level, height, width: geometry.rotation(3 * level, height, width),
    "ShearX": lambda level, height, width: geometry.identity_but(1, level * 0.3 / 10),
    "ShearY": lambda level, height, width: geometry.identity_but(3, level * 0.3 / 10),
    "TranslateX": lambda level, height, width: geometry.identity_but(2, torch.trunc(level * 0.3 / 10 * width)),
    "TranslateY": lambda level, height, width: geometry.identity_but(5, torch.trunc(level * 0.3 / 10 * height)),
}
# the operation on images [B, C, H, W] and amounts [B], and level [L] -> amount [L]
COLOR: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "AutoContrast": (lambda images, amount: color.autocontrast(images), torch.abs),
    "Brightness": (color.brightness, lambda level: level.abs() * 0.9 / 10 + 0.05),
    "Color": (color.color, lambda level: level.abs() * 0.9 / 10 + 0.05),
    "Contrast": (color.contrast, lambda level: level.abs() * 0.9 / 10 + 0.05),
    "Equalize": (lambda images, amount: color.equalize(images), torch.abs),
    "Posterize": (color.posterize, lambda level: torch.floor(level.abs() * 4 / 10) + 4),
    "Sharpness": (color.sharpness, lambda level: level.abs() * 0.9 / 10 + 0.05),
    "Solarize": (color.solarize, lambda level: 256 - torch.floor(level.abs() * 256 / 10)),
    "Identity": (lambda images, amount: images, torch.abs),
}
POOL = (*GEOMETRY, *COLOR)


def weak(images: Tensor, uniforms: Tensor, *, flip: bool) -> Tensor:
    """Mirror with probability 1/2 if `flip`, then a random crop after reflection padding by an eighth of the side.

    Takes and returns uint8 [B, C, S, S]; the columns of `uniforms`, float64 [B, 3], are for mirror, row and column.

    Source: FixMatch (arXiv 2001.07685), section 2.3: 4 reflected pixels at a side of 32.
    """
    check_images(images)
    pad = images.shape[3] // 8
    mirror, top, left = _choices(uniforms, [2, 2 * pad + 1, 2 * pad + 1])
    return geometry.padded_crop(images, top, left, pad=pad, flip=mirror == 1 if flip else None)


def strong(images: Tensor, uniforms: Tensor, *, flip: bool) -> Tensor:
    """The weak augmentation, then twice one of 14 operations with probability 1/2, then Cutout of up to half the side.

    Takes and returns uint8 [B, C, S, S]; `uniforms` is float64 [B, STRONG_DRAWS].

    Source: FixMatch (arXiv 2001.07685). Cutout of a random side up to half the image's, as the paper describes and
    TorchSSL does it; google-research/fixmatch and kekmodel/FixMatch-pytorch always take half.
    """
    size = images.shape[3]
    images = weak(images, uniforms[:, :WEAK_DRAWS], flip=flip)
    sides = [size // 2 + 1, size, size]
    *rounds, side, row, column = _choices(uniforms[:, WEAK_DRAWS:], [2 * len(POOL), len(LEVELS)] * ROUNDS + sides)
    for which, level in zip(rounds[::2], rounds[1::2], strict=True):
        images = _one_each(images, which, level)
    return geometry.cutout(images, row - side // 2, column - side // 2, side)


def _one_each(images: Tensor, which: Tensor, level: Tensor) -> Tensor:
    """Apply the operation POOL[which] at LEVELS[level] to each image, and none where `which` is beyond the pool."""
    # Sorted by operation, the images of one operation are contiguous, and their number is known without a sync.
    order = which.argsort()
    which, level = which[order].clamp_(max=len(POOL) - 1), level[order]
    sizes = torch.bincount(which, minlength=len(POOL)).tolist()
    moved, colored = sum(sizes[: len(GEOMETRY)]), sizes[len(GEOMETRY) :]
    first, *rest = torch.split(images.index_select(0, order.to(images.device, non_blocking=True)), [moved, *colored])
    done = [geometry.affine(first, _matrices(*images.shape[2:])[which[:moved], level[:moved]])]
    amounts = torch.split(_amounts()[which[moved:] - len(GEOMETRY), level[moved:]], colored)
    for (operation, _), chunk, amount in zip(COLOR.values(), rest, amounts, strict=True):
        done.append(operation(chunk, amount) if len(chunk) else chunk)
    return torch.cat(done).index_select(0, order.argsort().to(images.device, non_blocking=True))


@cache
def _matrices(height: int, width: int) -> Tensor:
    """Fixed-point coefficients of every geometric operation at every level: int32 [5, L, 6]."""
    return geometry.fixed_point(torch.stack([matrix(LEVELS, height, width) for matrix in GEOMETRY.values()]))


@cache
def _amounts() -> Tensor:
    """Amounts of every colour operation at every level: float64 [9, L]."""
    return torch.stack([amount(LEVELS) for _, amount in COLOR.values()])


def _choices(uniforms: Tensor, counts: list[int]) -> tuple[Tensor, ...]:
    """Column k of uniform numbers in [0, 1) [B, K] as uniform integers 0 ... counts[k] - 1: K tensors int64 [B]."""
    return (uniforms * torch.tensor(counts)).long().unbind(1)
