"""The operations and views of BYOL, MoCo and DINO against torchvision's, image by image."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from spatial_ensemble.data.augment import jitter, resample, selfsupervised
from spatial_ensemble.data.augment.selfsupervised import RECIPES, SIGMAS
from spatial_ensemble.data.views import view


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8: noise, few values (so that channels tie), flat grey, black and white, in turns."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=draw)
    images[1::4] = images[1::4] // 100 * 100
    images[2::4] = 77
    images[3::4] = images[3::4] // 128 * 255
    return images


def as_float(images: Tensor) -> Tensor:
    return images.float() / 255


ADJUST = {
    jitter.BRIGHTNESS: F.adjust_brightness,
    jitter.CONTRAST: F.adjust_contrast,
    jitter.SATURATION: F.adjust_saturation,
    jitter.HUE: F.adjust_hue,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [jitter.BRIGHTNESS, jitter.CONTRAST, jitter.SATURATION])
def test_adjust_equals_torchvision(kind: int, channels: int) -> None:
    factors = [0.0, 0.2, 0.6, 1.0, 1.4, 1.8, 3.0, 1.0]
    images = as_float(pictures(8, channels, 9, 7))
    every = torch.tensor([1.0, 1, 1, 0]).repeat(8, 1)
    every[:, kind] = torch.tensor(factors)
    result = jitter.jitter(images, every, torch.arange(4).expand(8, 4))
    expected = torch.stack([ADJUST[kind](image, factor) for image, factor in zip(images, factors, strict=True)])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_adjust_hue_equals_torchvision(channels: int) -> None:
    shifts = torch.linspace(-0.5, 0.5, 44).tolist()
    images = as_float(pictures(44, channels, 9, 7))
    result = jitter.adjust_hue(images, torch.tensor(shifts))
    expected = torch.stack([F.adjust_hue(image, shift) for image, shift in zip(images, shifts, strict=True)])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_jitter_takes_each_image_in_its_own_order() -> None:
    images = as_float(pictures(24, 3, 8, 8))
    order = torch.tensor([list(p) for p in torch.cartesian_prod(*[torch.arange(4)] * 4).tolist() if len(set(p)) == 4])
    factors = torch.rand(24, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 1, 0.4]) + 0.1
    result = jitter.jitter(images, factors, order)
    for image, own, kinds, mine in zip(images, factors.tolist(), order.tolist(), result, strict=True):
        for kind in kinds:
            image = ADJUST[kind](image, own[kind])
        torch.testing.assert_close(mine, image, rtol=0, atol=2e-5)


def test_jitter_by_neutral_factors_changes_nothing() -> None:
    images = as_float(pictures(8, 3, 8, 8))
    neutral = torch.tensor([[1.0, 1, 1, 0]]).expand(8, 4)
    assert torch.equal(jitter.jitter(images, neutral, torch.arange(4).expand(8, 4)), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_solarize_equal_torchvision(channels: int) -> None:
    images = as_float(pictures(8, channels, 16, 16))
    torch.testing.assert_close(jitter.grey(images), F.rgb_to_grayscale(images, channels), rtol=0, atol=1e-6)
    assert torch.equal(jitter.solarize(images), F.solarize(images, 128 / 255))


def torchvision_crop(image: Tensor, top: int, left: int, height: int, width: int, size: int) -> Tensor:
    return F.resized_crop(image, top, left, height, width, [size, size], InterpolationMode.BILINEAR, antialias=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_resized_crop_equals_torchvision_with_antialiasing(data: st.DataObject) -> None:
    high, wide, size = (data.draw(st.integers(1, most)) for most in (24, 24, 33))
    height, width = data.draw(st.integers(1, high)), data.draw(st.integers(1, wide))
    top, left = data.draw(st.integers(0, high - height)), data.draw(st.integers(0, wide - width))
    images = as_float(pictures(2, 3, high, wide))
    box = [torch.tensor([value] * 2) for value in (top, left, height, width)]
    result = resample.resized_crop(images, *box, size, torch.tensor([False, True]))
    expected = torchvision_crop(images, top, left, height, width, size)
    torch.testing.assert_close(result, torch.stack([expected[0], expected[1].flip(2)]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "reach"), [(32, 32, 6), (8, 8, 6), (9, 16, 3), (5, 5, 0)])
def test_gaussian_blur_equals_torchvision(height: int, width: int, reach: int) -> None:
    sigmas = [0.1, 0.3, 0.7, 1.0, 1.5, 2.0]
    images = as_float(pictures(6, 3, height, width))
    result = resample.gaussian_blur(images, torch.tensor(sigmas), reach)
    for image, sigma, mine in zip(images, sigmas, result, strict=True):
        expected = F.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


def box(uniforms: list[float], size: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """RandomResizedCrop's own loop, from the same numbers."""
    for area, ratio in zip(uniforms[:10], uniforms[10:20], strict=True):
        pixels = size**2 * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
        width, height = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < width <= size and 0 < height <= size:
            break
    else:
        width = height = size
    return int(uniforms[20] * (size - height + 1)), int(uniforms[21] * (size - width + 1)), height, width


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.4), (0.98, 1.0)])
@pytest.mark.parametrize("size", [4, 8, 32])
def test_random_boxes_are_those_of_random_resized_crop(size: int, scale: tuple[float, float]) -> None:
    draws = torch.rand(3000, resample.BOX_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    boxes = torch.stack(resample.random_boxes(draws, size, scale), dim=1)
    assert boxes.tolist() == [list(box(row, size, scale)) for row in draws.tolist()]


@pytest.mark.parametrize(("name", "channels"), [(name, 3) for name in RECIPES] + [("byol_2", 1)])
@pytest.mark.parametrize("size", [8, 40])
def test_views_equal_torchvision_image_by_image_for_the_same_draws(name: str, channels: int, size: int) -> None:
    images = pictures(40, channels, size, size)
    made, recipe = view(name, size=size, flip=True), selfsupervised.recipe(name, size)
    draws = made.draw(40, torch.Generator().manual_seed(1))
    side = selfsupervised.output_size(name, size)
    for image, u, mine in zip(as_float(images), draws.tolist(), made.apply(images, draws), strict=True):
        image = torchvision_crop(image, *box(u[:22], size, recipe.scale), side)
        image = image.flip(2) if u[22] < 0.5 else image
        if u[31] < recipe.jitter:
            for kind in sorted(range(4), key=lambda kind: u[27 + kind]):
                change = (2 * u[23 + kind] - 1) * recipe.colors[kind]
                image = ADJUST[kind](image, change if kind == jitter.HUE else 1 + change)
        if u[32] < recipe.grey:
            image = F.rgb_to_grayscale(image, channels)
        if u[33] < recipe.blur:
            reach = min(6, side - 1)
            image = F.gaussian_blur(image, [2 * reach + 1] * 2, [SIGMAS[0] + (SIGMAS[1] - SIGMAS[0]) * u[35]] * 2)
        if u[34] < recipe.solarize:
            image = F.solarize(image, 128 / 255)
        torch.testing.assert_close(mine, image, rtol=0, atol=5e-5)


def test_recipes_are_the_published_ones() -> None:
    assert [RECIPES[name].blur for name in ("byol_1", "byol_2", "moco")] == [1.0, 0.1, 0.5]
    assert [RECIPES[name].solarize for name in ("byol_1", "byol_2", "moco")] == [0.0, 0.2, 0.0]
    small = selfsupervised.recipe("moco", 32)
    assert (small.scale, small.blur, small.colors) == ((0.08, 1.0), 0.0, (0.4, 0.4, 0.4, 0.1))
    assert selfsupervised.recipe("moco", 64) == RECIPES["moco"]


@pytest.mark.parametrize(("size", "local"), [(8, 4), (20, 8), (32, 16), (96, 48)])
def test_local_views_have_half_the_side_and_fit_patches_of_four(size: int, local: int) -> None:
    images = pictures(2, 3, size, size)
    result = view("dino_local", size=size, flip=True)(images, torch.Generator().manual_seed(0))
    assert (result.shape, result.dtype) == ((2, 3, local, local), torch.float32)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 2, 8, 8)])
def test_images_of_another_kind_are_refused(images: Tensor) -> None:
    ones = torch.ones(2)
    for operation in (
        lambda: jitter.adjust_hue(images, ones),
        lambda: jitter.jitter(images, torch.ones(2, 4), torch.arange(4).expand(2, 4)),
        lambda: jitter.grey(images),
        lambda: jitter.solarize(images),
        lambda: resample.gaussian_blur(images, ones, 2),
        lambda: resample.resized_crop(images, ones, ones, ones, ones, 4),
    ):
        with pytest.raises(ValueError, match=r"images must be float32 \[B, C, H, W\] with C = 1 or 3, got"):
            operation()


def test_a_blur_or_crop_that_does_not_fit_is_refused() -> None:
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"a blur of reach 8 does not fit 8 x 8 pixels: take 0 \.\.\. 7"):
        resample.gaussian_blur(images, torch.ones(2), 8)
    with pytest.raises(ValueError, match="a crop of 0 x 0 pixels is empty"):
        resample.resized_crop(images, *[torch.ones(2)] * 4, 0)
