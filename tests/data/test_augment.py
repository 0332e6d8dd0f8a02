"""FixMatch's operations against Pillow's, to the bit, and what the batched views promise."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional

from spatial_ensemble.data.augment import color, fixmatch, geometry


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    return geometry.affine(images, geometry.fixed_point(geometry.rotation(degrees, *images.shape[-2:])))


def move(place: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, values: geometry.affine(images, geometry.fixed_point(geometry.identity_but(place, values)))


# name: (ours, Pillow's, magnitudes). Pillow is the judge, as kekmodel/FixMatch-pytorch calls it.
FACTORS = [0.0, 0.05, 0.14, 0.5, 0.86, 0.95, 1.0, 1.3, 1.9, 3.0]
SHEARS = [-0.9, -0.3, -0.27, -0.03, 0.0, 0.03, 0.12, 0.3, 0.5]
ORACLES: dict[str, tuple[Callable[..., Tensor], Callable[..., Image.Image], list[float]]] = {
    "brightness": (color.brightness, lambda image, v: ImageEnhance.Brightness(image).enhance(v), FACTORS),
    "color": (color.color, lambda image, v: ImageEnhance.Color(image).enhance(v), FACTORS),
    "contrast": (color.contrast, lambda image, v: ImageEnhance.Contrast(image).enhance(v), FACTORS),
    "sharpness": (color.sharpness, lambda image, v: ImageEnhance.Sharpness(image).enhance(v), FACTORS),
    "posterize": (color.posterize, ImageOps.posterize, [1, 2, 3, 4, 5, 6, 7, 8]),
    "solarize": (color.solarize, ImageOps.solarize, [0, 1, 26, 127, 128, 231, 255, 256]),
    "autocontrast": (lambda images, v: color.autocontrast(images), lambda image, v: ImageOps.autocontrast(image), [0]),
    "equalize": (lambda images, v: color.equalize(images), lambda image, v: ImageOps.equalize(image), [0]),
    "rotate": (rotate, lambda image, v: image.rotate(v), [*range(-30, 31), 45.7, 89.9, 90, 180, -270, 359.5]),
    "shear_x": (move(1), lambda image, v: affine(image, 1, v, 0, 0, 1, 0), SHEARS),
    "shear_y": (move(3), lambda image, v: affine(image, 1, 0, 0, v, 1, 0), SHEARS),
    "translate_x": (move(2), lambda image, v: affine(image, 1, 0, v, 0, 1, 0), [-9, -1, 0, 1, 3, 8, 40]),
    "translate_y": (move(5), lambda image, v: affine(image, 1, 0, 0, 0, 1, v), [-9, -1, 0, 1, 3, 8, 40]),
}
SHAPES = [(3, 32, 32), (1, 8, 8), (3, 7, 12), (1, 1, 2)]


def pictures(shape: tuple[int, int, int], count: int, seed: int = 0) -> Tensor:
    """Random images of several kinds: noise, a narrow range, few values, smooth, flat, black and white."""
    draw = np.random.default_rng(seed)
    kinds = [
        draw.integers(0, 256, shape),
        draw.integers(90, 140, shape),
        draw.choice([3, 4, 200], shape),
        np.broadcast_to(np.linspace(0, 250, shape[2]), shape) + draw.integers(0, 6, shape),
        np.full(shape, draw.integers(0, 256)),
        draw.choice([0, 255], shape),
    ]
    return torch.from_numpy(np.stack([kinds[i % len(kinds)] for i in range(count)]).astype(np.uint8))


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def from_pillow(image: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(image))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ORACLES)
def test_equals_pillow_to_the_bit(name: str, shape: tuple[int, int, int]) -> None:
    ours, pillow, magnitudes = ORACLES[name]
    magnitudes = [v for v in magnitudes for _ in range(6)]
    images = pictures(shape, len(magnitudes))
    result = ours(images, torch.tensor(magnitudes))
    assert result.dtype == torch.uint8
    for image, magnitude, mine in zip(images, magnitudes, result, strict=True):
        assert torch.equal(mine, from_pillow(pillow(to_pillow(image), magnitude))), magnitude


def random_images(seed: int, count: int, channels: int, height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=draw)


IDENTITIES: dict[str, tuple[Callable[..., Tensor], float]] = {
    "brightness": (color.brightness, 1),
    "color": (color.color, 1),
    "contrast": (color.contrast, 1),
    "sharpness": (color.sharpness, 1),
    "posterize": (color.posterize, 8),
    "solarize": (color.solarize, 256),
    "rotate": (rotate, 0),
    "shear_x": (move(1), 0),
    "shear_y": (move(3), 0),
    "translate_x": (move(2), 0),
    "translate_y": (move(5), 0),
}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 20), st.integers(1, 20))
def test_a_neutral_magnitude_changes_nothing(seed: int, count: int, channels: int, height: int, width: int) -> None:
    images = random_images(seed, count, channels, height, width)
    for name, (operation, neutral) in IDENTITIES.items():
        assert torch.equal(operation(images, torch.full((count,), neutral)), images), name


def test_color_is_the_identity_on_grey_images() -> None:
    images = random_images(0, 4, 1, 8, 8)
    assert torch.equal(color.color(images, torch.zeros(4)), images)


def test_operations_leave_their_input_alone() -> None:
    images = pictures((3, 9, 9), 6)
    before = images.clone()
    for ours, _, magnitudes in ORACLES.values():
        ours(images, torch.tensor(magnitudes[:1] * 6))
    geometry.cutout(images, *[torch.full((6,), 2)] * 3)
    assert torch.equal(images, before)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_padded_crop_equals_torchvision(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    pad = data.draw(st.integers(0, min(height, width) - 1))
    places = [data.draw(st.lists(st.integers(0, 2 * pad), min_size=3, max_size=3)) for _ in "yx"]
    mirrored = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
    images = random_images(0, 3, 3, height, width)
    top, left, flip = torch.tensor(places[0]), torch.tensor(places[1]), torch.tensor(mirrored)
    result = geometry.padded_crop(images, top, left, pad=pad, flip=flip)
    for i, image in enumerate(images):
        cut = functional.crop(
            functional.pad(image, [pad] * 4, padding_mode="reflect"), places[0][i], places[1][i], height, width
        )
        assert torch.equal(result[i], functional.hflip(cut) if mirrored[i] else cut)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(-6, 12), st.integers(-6, 12), st.integers(0, 8))
def test_cutout_paints_the_square_that_pillow_draws(size: int, row: int, column: int, side: int) -> None:
    image = random_images(size, 1, 3, size, size)
    drawn = to_pillow(image[0])
    if side:
        ImageDraw.Draw(drawn).rectangle((column, row, column + side - 1, row + side - 1), (127, 127, 127))
    result = geometry.cutout(image, *(torch.tensor([value]) for value in (row, column, side)))
    assert torch.equal(result[0], from_pillow(drawn))


def published(name: str, image: Image.Image, level: int, sign: int) -> Image.Image:
    """The pool of google-research/fixmatch and kekmodel/FixMatch-pytorch: level 1 ... 9 of 10, sign -1 or 1."""
    part = level / 10
    factor = part * 0.9 + 0.05
    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "Color": lambda: ImageEnhance.Color(image).enhance(factor),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "Equalize": lambda: ImageOps.equalize(image),
        "Identity": lambda: image,
        "Posterize": lambda: ImageOps.posterize(image, int(level * 4 / 10) + 4),
        "Rotate": lambda: image.rotate(sign * int(level * 30 / 10)),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "ShearX": lambda: affine(image, 1, sign * level * 0.3 / 10, 0, 0, 1, 0),
        "ShearY": lambda: affine(image, 1, 0, 0, sign * level * 0.3 / 10, 1, 0),
        "Solarize": lambda: ImageOps.solarize(image, 256 - int(level * 256 / 10)),
        "TranslateX": lambda: affine(image, 1, 0, int(sign * level * 0.3 / 10 * image.width), 0, 1, 0),
        "TranslateY": lambda: affine(image, 1, 0, 0, 0, 1, int(sign * level * 0.3 / 10 * image.height)),
    }[name]()


@pytest.mark.parametrize(("channels", "size", "flip"), [(3, 32, True), (1, 8, False), (3, 13, True)])
def test_strong_equals_pillow_image_by_image_for_the_same_draws(channels: int, size: int, flip: bool) -> None:
    images = pictures((channels, size, size), 250)
    uniforms = torch.rand(250, fixmatch.STRONG_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = fixmatch.strong(images, uniforms, flip=flip)
    pad = size // 8
    done = set()
    for image, u, mine in zip(images, uniforms.tolist(), result, strict=True):
        moved = functional.crop(
            functional.pad(image, [pad] * 4, padding_mode="reflect"),
            int(u[1] * (2 * pad + 1)),
            int(u[2] * (2 * pad + 1)),
            size,
            size,
        )
        drawn = to_pillow(functional.hflip(moved) if flip and u[0] >= 0.5 else moved)
        for which, how in ((u[3], u[4]), (u[5], u[6])):
            if which < 0.5:  # so that each is done with probability 1/2
                name = fixmatch.POOL[int(which * 28)]
                signed = [*range(-9, 0), *range(1, 10)][int(how * 18)]
                drawn = published(name, drawn, abs(signed), 1 if signed > 0 else -1)
                done.add((name, abs(signed)))
        side, row, column = int(u[7] * (size // 2 + 1)), int(u[8] * size), int(u[9] * size)
        top, left = row - side // 2, column - side // 2
        if side:
            grey = 127 if channels == 1 else (127, 127, 127)
            drawn = drawn.copy()
            ImageDraw.Draw(drawn).rectangle((left, top, left + side - 1, top + side - 1), grey)
        assert torch.equal(mine, from_pillow(drawn))
    assert {name for name, _ in done} == set(fixmatch.POOL) and len(fixmatch.POOL) == 14
    assert {level for _, level in done} == set(range(1, 10))


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 2, 8, 8, dtype=torch.uint8)],
    ids=["float", "no batch", "two channels"],
)
def test_images_of_another_kind_are_refused(name: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, C, H, W\] with C = 1 or 3, got"):
        ORACLES[name][0](images, torch.ones(len(images)))


def test_magnitudes_and_matrices_must_match_the_images() -> None:
    images = random_images(0, 3, 3, 8, 8)
    with pytest.raises(ValueError, match=r"one number for each of 3 images, got shape \[2\]"):
        color.brightness(images, torch.ones(2))
    with pytest.raises(ValueError, match=r"expected coefficients \[3, 6\], got \[2, 6\]"):
        rotate(images, torch.ones(2))


@pytest.mark.parametrize("pad", [-1, 8, 9])
def test_a_pad_that_reaches_the_size_is_refused(pad: int) -> None:
    with pytest.raises(ValueError, match=f"cannot pad 8 x 8 pixels by {pad}: take 0 ... 7"):
        geometry.padded_crop(random_images(0, 1, 1, 8, 8), torch.zeros(1), torch.zeros(1), pad=pad)
