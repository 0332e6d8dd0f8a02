"""FixMatch's strong view on one core: batched here, against image by image with Pillow and with torchvision v2.

    python benchmarks/augment.py [--repeats 15] [--out benchmarks/results/augment.md]

Pillow: as kekmodel/FixMatch-pytorch does it (its torchvision flip and crop, its pool, its Cutout), written anew.
Pillow, lean: the same with the flip and the crop by NumPy indexing, the fastest way image by image known to us.
torchvision v2: the same operations and ranges by `torchvision.transforms.v2.functional` on uint8 tensors.
All start from uint8 pixels in memory and end with them, in turns within one run; the medians count.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import medians, save
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from spatial_ensemble.data.views import view

BATCH, SEED = 448, 0


def signed(value: float) -> float:
    return value if random.random() < 0.5 else -value


def factor(level: int) -> float:
    return level * 0.9 / 10 + 0.05


def shift(level: int, size: int) -> int:
    return int(signed(level * 0.3 / 10) * size)


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


PILLOW: list[Callable[[Image.Image, int], Image.Image]] = [
    lambda image, level: ImageOps.autocontrast(image),
    lambda image, level: ImageEnhance.Brightness(image).enhance(factor(level)),
    lambda image, level: ImageEnhance.Color(image).enhance(factor(level)),
    lambda image, level: ImageEnhance.Contrast(image).enhance(factor(level)),
    lambda image, level: ImageOps.equalize(image),
    lambda image, level: image,
    lambda image, level: ImageOps.posterize(image, 4 + 4 * level // 10),
    lambda image, level: image.rotate(signed(3 * level)),
    lambda image, level: ImageEnhance.Sharpness(image).enhance(factor(level)),
    lambda image, level: affine(image, 1, signed(level * 0.3 / 10), 0, 0, 1, 0),
    lambda image, level: affine(image, 1, 0, 0, signed(level * 0.3 / 10), 1, 0),
    lambda image, level: ImageOps.solarize(image, 256 - 256 * level // 10),
    lambda image, level: affine(image, 1, 0, shift(level, image.width), 0, 1, 0),
    lambda image, level: affine(image, 1, 0, 0, 0, 1, shift(level, image.height)),
]
STILL = {"translate": [0, 0], "scale": 1.0}
TORCHVISION: list[Callable[[Tensor, int], Tensor]] = [
    lambda image, level: F.autocontrast(image),
    lambda image, level: F.adjust_brightness(image, factor(level)),
    lambda image, level: F.adjust_saturation(image, factor(level)),
    lambda image, level: F.adjust_contrast(image, factor(level)),
    lambda image, level: F.equalize(image),
    lambda image, level: image,
    lambda image, level: F.posterize(image, 4 + 4 * level // 10),
    lambda image, level: F.rotate(image, signed(3 * level)),
    lambda image, level: F.adjust_sharpness(image, factor(level)),
    lambda image, level: F.affine(image, angle=0, shear=[signed(1.7 * level), 0], **STILL),
    lambda image, level: F.affine(image, angle=0, shear=[0, signed(1.7 * level)], **STILL),
    lambda image, level: F.solarize(image, min(255, 256 - 256 * level // 10)),
    lambda image, level: F.affine(image, 0, [shift(level, image.shape[2]), 0], 1.0, [0, 0]),
    lambda image, level: F.affine(image, 0, [0, shift(level, image.shape[1])], 1.0, [0, 0]),
]


def square(width: int, height: int, side: int) -> tuple[int, int, int, int]:
    x, y = random.uniform(0, width), random.uniform(0, height)
    left, top = int(max(0, x - side / 2)), int(max(0, y - side / 2))
    return left, top, min(width, left + side), min(height, top + side)


def weak_torchvision(size: int, flip: bool) -> Callable[[np.ndarray], Image.Image]:
    crop = transforms.RandomCrop(size, padding=size // 8, padding_mode="reflect")
    weak = transforms.Compose([transforms.RandomHorizontalFlip(), crop]) if flip else crop
    return lambda pixels: weak(Image.fromarray(pixels))


def weak_numpy(size: int, flip: bool) -> Callable[[np.ndarray], Image.Image]:
    pad = size // 8
    reflected = np.pad(np.arange(size), pad, mode="reflect")

    def weak(pixels: np.ndarray) -> Image.Image:
        top, left = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
        columns = reflected[left : left + size]
        if flip and random.random() < 0.5:
            columns = columns[::-1]
        return Image.fromarray(pixels[reflected[top : top + size, None], columns])

    return weak


def pillow(images: np.ndarray, weak: Callable[[np.ndarray], Image.Image]) -> list[np.ndarray]:
    """uint8 [B, H, W, C], or [B, H, W] where grey."""
    done = []
    for pixels in images:
        image = weak(pixels)
        for operation in random.choices(PILLOW, k=2):
            level = random.randint(1, 9)
            if random.random() < 0.5:
                image = operation(image, level)
        image = image.copy()
        grey = 127 if image.mode == "L" else (127, 127, 127)
        ImageDraw.Draw(image).rectangle(square(*image.size, image.width // 2), grey)
        done.append(np.asarray(image))
    return done


def torchvision_v2(images: Tensor, size: int, flip: bool) -> list[Tensor]:
    """uint8 [B, C, H, W]."""
    crop = v2.RandomCrop(size, padding=size // 8, padding_mode="reflect")
    weak = v2.Compose([v2.RandomHorizontalFlip(), crop]) if flip else crop
    done = []
    for image in images:
        image = weak(image)
        for operation in random.choices(TORCHVISION, k=2):
            level = random.randint(1, 9)
            if random.random() < 0.5:
                image = operation(image, level)
        left, top, right, bottom = square(size, size, size // 2)
        done.append(F.erase(image, top, left, bottom - top, right - left, torch.tensor(127, dtype=torch.uint8)))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="turns each way gets")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "augment.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(SEED)
    torch.manual_seed(SEED)
    noise = torch.randint(0, 256, (BATCH, 3, 8, 8), dtype=torch.uint8)
    coloured = F.resize(noise, [32, 32], antialias=True)  # smooth random pictures, as large as CIFAR's
    digits = torch.from_numpy((load_digits().images[:BATCH] * 255 / 16).astype(np.uint8)).unsqueeze(1)
    rows = []
    for what, images, flip in (("32 x 32 x 3", coloured, True), ("digits, 8 x 8 x 1", digits, False)):
        size = images.shape[3]
        strong, generator = view("strong", size=size, flip=flip), torch.Generator().manual_seed(SEED)
        arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        arrays = arrays[..., 0] if images.shape[1] == 1 else arrays
        as_published, lean = weak_torchvision(size, flip), weak_numpy(size, flip)
        ways: dict[str, Callable[[], object]] = {
            "spatial_ensemble": lambda i=images, s=strong, g=generator: s(i, g),
            "Pillow": lambda a=arrays, w=as_published: pillow(a, w),
            "Pillow, lean": lambda a=arrays, w=lean: pillow(a, w),
            "torchvision v2": lambda i=images, n=size, f=flip: torchvision_v2(i, n, f),
        }
        seconds = medians(ways, arguments.repeats)
        ours = seconds["spatial_ensemble"]
        for way, time in seconds.items():
            rows.append(f"| {what} | {way} | {BATCH / time:,.0f} | {time / ours:.1f} |")
            print(f"{what:18s} {way:17s} {BATCH / time:10,.0f} images/s   ours is {time / ours:.1f} times as fast")
    save(
        arguments.out,
        "FixMatch's strong view, images a second on one core",
        f"python benchmarks/augment.py --repeats {arguments.repeats}",
        f"batch {BATCH}, torch.set_num_threads(1), seed {SEED}, medians of {arguments.repeats} turns, uint8 to uint8",
        ["| images | way | images/s | ours is faster by |", "|---|---|---:|---:|", *rows],
        ["torch", "torchvision", "pillow", "numpy"],
    )


if __name__ == "__main__":
    main()
