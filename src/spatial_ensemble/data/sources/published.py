"""Published data sets: scikit-learn's digits, and CIFAR, SVHN and STL-10 by torchvision."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatial_ensemble.data.images import ImageData, Images, statistics
from spatial_ensemble.data.splits import draw_per_class, without
from spatial_ensemble.errors import UserError

log = logging.getLogger(__name__)

LARGEST_RESIZED = 8 * 2**30  # bytes


def load_digits(image_size: int | None) -> ImageData:
    """1,797 scans of the ten digits; 50 of each are the test set, whatever the seed of the run."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    images, labels = _resize(images, image_size), torch.from_numpy(bunch.target.astype(np.int64))
    test = draw_per_class(labels, [50] * 10, 0, "digits test")
    train = without(len(labels), test)
    mean, std = statistics(images[train])
    one, other = (Images(images[part], labels[part]) for part in (train, test))
    return ImageData("digits", one, other, tuple("0123456789"), mean, std, flip=False)


@dataclass(frozen=True)
class Published:
    """A data set of torchvision, with its published mean and deviation (STL-10: of training and unlabelled images)."""

    reader: str  # torchvision's class
    train: dict[str, Any]  # arguments for the parts
    test: dict[str, Any]
    holds: str  # the files it needs
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool = True


PUBLISHED = {
    "cifar10": Published(
        "CIFAR10", {"train": True}, {"train": False}, "cifar-10-batches-py/",
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Published(
        "CIFAR100", {"train": True}, {"train": False}, "cifar-100-python/",
        (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762),
    ),
    "svhn": Published(
        "SVHN", {"split": "train"}, {"split": "test"}, "train_32x32.mat and test_32x32.mat",
        (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), flip=False,
    ),
    "stl10": Published(
        "STL10", {"split": "train+unlabeled"}, {"split": "test"}, "stl10_binary/",
        (0.4409, 0.4279, 0.3868), (0.2683, 0.2610, 0.2687),
    ),
}  # fmt: skip


def load_torchvision(name: str, root: Path, image_size: int | None) -> ImageData:
    from torchvision import datasets

    if root.is_file():
        raise UserError(f"{root} is a file: --path takes the folder that holds {name}, or where to download it to")
    known, existed = PUBLISHED[name], root.exists()

    def read(part: dict[str, Any]) -> Any:
        reader = getattr(datasets, known.reader)
        try:
            return reader(root, **part)
        except RuntimeError:  # torchvision's error for missing or damaged files
            log.warning("downloading %s to %s", name, root)
        try:
            return reader(root, **part, download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            if not existed:
                with suppress(OSError):  # unless there is anything in it
                    root.rmdir()
            raise UserError(
                f"{name} is missing from {root}, or damaged, and could not be downloaded ({error}): put "
                f"{known.holds} there, or use --data folder with images in class folders"
            ) from error

    train, test = read(known.train), read(known.test)
    classes = tuple(getattr(train, "classes", "0123456789"))  # SVHN has no names: digits
    one, other = (_images(part, image_size) for part in (train, test))
    return ImageData(name, one, other, classes, known.mean, known.std, known.flip)


def _images(part: Any, image_size: int | None) -> Images:
    """The images of a torchvision data set, stored as [N, H, W, 3] or [N, 3, H, W]."""
    pixels = torch.from_numpy(part.data)
    if pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    labels = part.targets if hasattr(part, "targets") else part.labels
    return Images(_resize(pixels, image_size).contiguous(), torch.as_tensor(labels, dtype=torch.int64))


def _resize(images: Tensor, size: int | None) -> Tensor:
    if size is None or size == images.shape[-1]:
        return images
    needed, number = len(images) * images.shape[1] * size**2, len(images)
    if needed > LARGEST_RESIZED:
        raise UserError(f"--image-size {size}: {number} images take {needed / 2**30:.0f} GiB: choose a smaller size")
    from torchvision.transforms.v2.functional import resize

    return torch.cat([resize(piece, [size, size]) for piece in images.split(4096)])
