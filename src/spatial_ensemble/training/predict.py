"""Classify image files."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from spatial_ensemble.data.sources.decode import SUFFIXES, BrokenImageError, decode
from spatial_ensemble.data.sources.folder import files_below
from spatial_ensemble.errors import UserError
from spatial_ensemble.evaluation import predict as outputs
from spatial_ensemble.training.build import restore
from spatial_ensemble.training.evaluate import Which
from spatial_ensemble.training.processes import choose_device

CHUNK = 500  # images in memory at a time


def predict(
    path: Path, images: Path, *, which: Which = "teacher", skip_broken: bool = False, device: str = "auto"
) -> Iterator[tuple[Path, str, float]]:
    """Yield each image's path, its class, and the probability of that class.

    Args:
        path: the checkpoint.
        images: an image, or a folder that is searched with its subfolders.
        which: the teacher or the student.
        skip_broken: skip broken images; otherwise the first one is an error.
        device: auto, cpu or cuda.

    Raises:
        UserError: no checkpoint, a network without a classifier, no image, or a broken one.
    """
    content, config, method, teacher = restore(path)
    data = content["data"]
    if method.headline != "accuracy":
        raise UserError(f"{path} holds a network of {config.method}, which has no classifier")
    if not images.exists():
        raise UserError(f"no such image or folder: {images}")
    files = [images] if images.is_file() else [Path(file) for file in files_below(images)]
    if not files:
        raise UserError(f"no image in {images}: images end in {', '.join(SUFFIXES)}")
    network = (teacher.module if which == "teacher" else method.student).to(choose_device(device))
    for start in range(0, len(files), CHUNK):
        kept, pixels = [], []
        for file in files[start : start + CHUNK]:
            try:
                pixels.append(_channels(decode(file, data["size"]), data["channels"]))
                kept.append(file)
            except BrokenImageError as error:
                if not skip_broken:
                    raise UserError(f"{file} is a broken image ({error}): remove it, or add --skip-broken") from None
        if kept:
            chances = outputs(network, torch.stack(pixels), data["mean"], data["std"]).softmax(dim=1)
            for file, chance, place in zip(kept, *(t.tolist() for t in chances.max(dim=1)), strict=True):
                yield file, data["classes"][place], chance


def _channels(pixels: object, channels: int) -> Tensor:
    """uint8 [C, H, W] with the channels of the network; grey is the luma of ITU-R 601, as in Pillow."""
    image = torch.as_tensor(pixels).permute(2, 0, 1)
    if channels == 1 and len(image) == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        return (image * weights).sum(0, keepdim=True).round().to(torch.uint8)
    return image.expand(channels, -1, -1)
