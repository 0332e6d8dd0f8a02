"""BYOL's two views at 32 x 32 on one core: batched here, against lightly's transform image by image.

    python benchmarks/views.py [--repeats 11] [--out benchmarks/results/views.md]

With and without the blur (solo-learn's and lightly's recipes for CIFAR leave it out), from uint8 pixels in memory to
normalised float32, in turns within one run; the medians count.
"""

import argparse
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import medians, save
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from spatial_ensemble.data.augment.selfsupervised import DRAWS, RECIPES, distort, recipe
from spatial_ensemble.data.views import View

BATCH, SIZE, SEED = 256, 32, 0


def ours(images: Tensor, views: list[View], generator: torch.Generator) -> list[Tensor]:
    mean, std = (torch.tensor(IMAGENET_NORMALIZE[name]).view(3, 1, 1) for name in ("mean", "std"))
    return [view(images, generator).sub_(mean).div_(std) for view in views]


def lightly(arrays: np.ndarray, transform: BYOLTransform) -> list[Tensor]:
    pairs = [transform(Image.fromarray(pixels)) for pixels in arrays]
    return [torch.stack(views) for views in zip(*pairs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="turns each way gets")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "views.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(SEED)
    torch.manual_seed(SEED)
    noise = torch.randint(0, 256, (BATCH, 3, 8, 8), dtype=torch.uint8)
    images = F.resize(noise, [SIZE, SIZE], antialias=True)  # smooth random pictures, as large as CIFAR's
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for what, blur in (("as for CIFAR, no blur", False), ("as for ImageNet, blur 1.0 and 0.1", True)):
        recipes = [RECIPES[name] if blur else recipe(name, SIZE) for name in ("byol_1", "byol_2")]
        views = [View(partial(distort, recipe=each, size=SIZE, flip=True), DRAWS) for each in recipes]
        transform = BYOLTransform(
            BYOLView1Transform(input_size=SIZE, gaussian_blur=recipes[0].blur),
            BYOLView2Transform(input_size=SIZE, gaussian_blur=recipes[1].blur),
        )
        ways: dict[str, Callable[[], object]] = {
            "spatial_ensemble": partial(ours, images, views, generator),
            "lightly": partial(lightly, arrays, transform),
        }
        seconds = medians(ways, arguments.repeats)
        for way, time in seconds.items():
            faster = time / seconds["spatial_ensemble"]
            rows.append(f"| {what} | {way} | {BATCH / time:,.0f} | {faster:.1f} |")
            print(f"{what:34s} {way:17s} {BATCH / time:8,.0f} pairs/s   ours is {faster:.1f} times as fast")
    save(
        arguments.out,
        "BYOL's two views at 32 x 32 x 3, pairs a second on one core",
        f"python benchmarks/views.py --repeats {arguments.repeats}",
        f"batch {BATCH}, torch.set_num_threads(1), seed {SEED}, medians of {arguments.repeats} turns",
        ["| recipe | way | pairs/s | ours is faster by |", "|---|---|---:|---:|", *rows],
        ["torch", "torchvision", "lightly", "pillow"],
    )


if __name__ == "__main__":
    main()
