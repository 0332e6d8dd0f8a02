"""Views by name: random functions of a batch of images on the device."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spatial_ensemble.data.augment import fixmatch, selfsupervised
from spatial_ensemble.data.augment.common import check_images
from spatial_ensemble.errors import UserError


@dataclass(frozen=True)
class View:
    """A random function of images, as a pure function of the images and of `draws` uniform numbers per image.

    `view(images, generator)` draws and applies. A rank that holds a slice of a batch draws for the whole batch and
    applies its own rows: `view.apply(images[part], view.draw(count, generator)[part])`.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    draws: int

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers in [0, 1), float64 [count, draws], from a CPU generator."""
        return torch.rand(count, self.draws, generator=generator, dtype=torch.float64)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment uint8 images [B, C, H, W], each with its own draws: uint8 [B, C, h, w], or float in [0, 1]."""
        return self.apply(images, self.draw(len(images), generator))


def view(name: str, *, size: int, flip: bool) -> View:
    """The view of that name.

    Args:
        name: "plain" (unchanged), "weak" or "strong" (FixMatch's), "crop" (random resized crop and mirror, for linear
            evaluation), "byol_1", "byol_2", "moco" (v2), "dino_global_1", "dino_global_2" or "dino_local" (half the
            side); or the dotted path of a function (*, size, flip) that returns a View.
        size: side of the images, pixels.
        flip: whether a mirror image keeps its class (not for digits).

    Returns:
        A function of uint8 images [B, C, size, size] and a CPU generator. The first three return uint8 [B, C, size,
        size], the others float32 in [0, 1].

    Raises:
        UserError: unknown name.
        ValueError: from the view, for images of another size or type.

    Example:
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> view("strong", size=32, flip=True)(images, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 32, 32])
    """
    views: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
        "plain": (lambda images, uniforms: images, 0),
        "weak": (partial(fixmatch.weak, flip=flip), fixmatch.WEAK_DRAWS),
        "strong": (partial(fixmatch.strong, flip=flip), fixmatch.STRONG_DRAWS),
    }
    for known in selfsupervised.RECIPES:
        recipe, side = selfsupervised.recipe(known, size), selfsupervised.output_size(known, size)
        views[known] = (partial(selfsupervised.distort, recipe=recipe, size=side, flip=flip), selfsupervised.DRAWS)
    if name not in views:
        unknown = f"unknown view {name!r}: choose one of {', '.join(views)}, or the dotted path of your own"
        if "." not in name:
            raise UserError(unknown)
        try:
            own: Callable[..., View] = pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"{unknown} ({error})") from error
        return own(size=size, flip=flip)
    function, draws = views[name]

    def checked(images: Tensor, uniforms: Tensor) -> Tensor:
        check_images(images)
        if images.shape[2:] != (size, size):
            raise ValueError(f"view {name!r} was made for {size} x {size} pixels, got images {list(images.shape)}")
        return function(images, uniforms)

    return View(checked, draws)
