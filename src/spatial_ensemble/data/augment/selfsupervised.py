"""The views of BYOL, MoCo v2 and DINO on whole batches, on the device, each image with its own draws.

Resizing is bilinear with antialiasing throughout (BYOL's and DINO's own code interpolates bicubically); colours are not
rounded to bytes between the operations as Pillow's are; a blur is a Gaussian truncated at three standard deviations.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spatial_ensemble.data.augment import jitter, resample
from spatial_ensemble.data.augment.common import check_images, replace_

DRAWS = resample.BOX_DRAWS + 14
SIGMAS = (0.1, 2.0)
REACH = 6
CACHED = 2**19  # floating-point pixels that stay in a CPU's cache from one operation to the next
SMALL = 32


@dataclass(frozen=True)
class Recipe:
    """Strength of a view: range of the crop's area, largest changes of the colours, probabilities of the rest."""

    scale: tuple[float, float] = (0.08, 1.0)
    colors: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    solarize: float = 0.0


# crop: for linear evaluation. BYOL: arXiv 2006.07733, appendix B. MoCo v2: facebookresearch/moco, main_moco.py with
# --aug-plus. DINO: its main_dino.py.
RECIPES = {
    "crop": Recipe(jitter=0.0, grey=0.0),
    "byol_1": Recipe(blur=1.0),
    "byol_2": Recipe(blur=0.1, solarize=0.2),
    "moco": Recipe(scale=(0.2, 1.0), colors=(0.4, 0.4, 0.4, 0.1), blur=0.5),
    "dino_global_1": Recipe(scale=(0.4, 1.0), blur=1.0),
    "dino_global_2": Recipe(scale=(0.4, 1.0), blur=0.1, solarize=0.2),
    "dino_local": Recipe(scale=(0.05, 0.4), blur=0.5),
}


def recipe(name: str, size: int) -> Recipe:
    """The recipe of a view for images of `size` pixels a side.

    Up to 32 x 32 pixels there is no blur, as in solo-learn's BYOL and DINO on CIFAR and in MoCo's own CIFAR notebook,
    and MoCo crops from 0.08 on, as in the latter.
    """
    known = RECIPES[name]
    if size > SMALL:
        return known
    return replace(known, blur=0.0, scale=(0.08, 1.0) if name == "moco" else known.scale)


def output_size(name: str, size: int) -> int:
    """Side of the view: that of the images; for local crops half of it, a multiple of 4 so that patches of 4 fit."""
    return max(4, size // 8 * 4) if name == "dino_local" else size


def distort(images: Tensor, uniforms: Tensor, recipe: Recipe, *, size: int, flip: bool) -> Tensor:
    """Random resized crop, mirror, colour jitter, grey, blur, solarise, in this order.

    From uint8 [B, C, S, S] to float32 [B, C, size, size] in [0, 1]; `uniforms` is float64 [B, DRAWS] on the CPU.
    """
    check_images(images)
    together = max(1, len(images) if images.is_cuda else CACHED // (images.shape[1] * size**2))
    parts = zip(torch.split(images, together), torch.split(uniforms, together), strict=True)
    return torch.cat([_distort(part, draws, recipe, size, flip) for part, draws in parts])


def _distort(images: Tensor, uniforms: Tensor, recipe: Recipe, size: int, flip: bool) -> Tensor:
    box, mirror, colors, order, chance, sigma = torch.split(uniforms, [resample.BOX_DRAWS, 1, 4, 4, 4, 1], dim=1)
    limits = torch.tensor([recipe.jitter, recipe.grey, recipe.blur, recipe.solarize])
    jittered, greyed, blurred, solarized = (chance < limits).unbind(1)
    boxes = resample.random_boxes(box, images.shape[3], recipe.scale)
    mirrored = mirror[:, 0] < 0.5 if flip else None
    views = resample.resized_crop(images.float().div_(255), *boxes, size, mirrored)
    if recipe.jitter:
        change = (2 * colors - 1) * torch.tensor(recipe.colors) * jittered.unsqueeze(1)
        views = jitter.jitter(views, torch.tensor([1, 1, 1, 0]) + change, order.argsort(dim=1))
    replace_(views, greyed, jitter.grey)
    blur = partial(resample.gaussian_blur, reach=min(REACH, size - 1))
    replace_(views, blurred, blur, SIGMAS[0] + (SIGMAS[1] - SIGMAS[0]) * sigma[:, 0])
    replace_(views, solarized, jitter.solarize)
    return views
