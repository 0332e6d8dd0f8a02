"""Image data sets by name: `load("digits")`, `load("folder", path)`."""

import difflib
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

__all__ = ["NAMES", "ImageData", "Images", "load"]

log = logging.getLogger(__name__)

LARGEST_SIZE = 1024
LARGEST_RESIZED = 8 * 2**30  # bytes
NAMES = ("digits", "cifar10", "cifar100", "svhn", "stl10", "folder")


def load(
    name: str, path: str | None = None, *, image_size: int | None = None, skip_broken: bool = False, seed: int = 0
) -> ImageData:
    """Read a data set.

    Args:
        name: "digits" (built in, 8x8), "cifar10", "cifar100", "svhn", "stl10" or "folder".
        path: where the data lie, or are downloaded to (all but digits and folder; None: a cache in the home folder).
        image_size: side in pixels that images are brought to (short side resized, then the centre cropped);
            None keeps their own, which must then be one square of at most 96 pixels.
        skip_broken: leave out broken images of a folder, and count them, where otherwise the first one is an error.
        seed: of the split by name of a folder that has no test/, which is to be the same in training and evaluation.
            The split of every other set is fixed.

    Returns:
        The training and test images, uint8: in memory, or, if a folder's would take more than 2 GiB, in their files.

    Raises:
        UserError: an unknown name, or anything amiss in the data.

    Example:
        >>> load("digits").train.images.shape
        torch.Size([1297, 1, 8, 8])
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown data set {name!r} (known: {', '.join(NAMES)}){hint}")
    if image_size is not None and not 1 <= image_size <= LARGEST_SIZE:
        raise UserError(f"--image-size {image_size}: must be 1 to {LARGEST_SIZE} pixels")
    if name == "digits":
        if path is not None:
            raise UserError(f"digits is built in and takes no path, but --path {path} was given: use --data folder?")
        return _digits(image_size)
    if name == "folder":
        if path is None:
            raise UserError("--data folder needs --path, the folder that holds train/<class>/ or <class>/")
        from spatial_ensemble.data.folder import load_folder

        return load_folder(_expanded(path), image_size=image_size, skip_broken=skip_broken, seed=seed)
    return _published(name, _expanded(path or "~/.cache/spatial-ensemble"), image_size)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"--path {path}: no such home folder: give the whole path") from error


def _digits(image_size: int | None) -> ImageData:
    """1,797 scans of ten digits. 50 of each are the test set, by a draw that the run's seed does not change: seeds vary
    the training, not the exam."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    images, labels = _resize(images, image_size), torch.from_numpy(bunch.target.astype(np.int64))
    test = draw_per_class(labels, [50] * 10, 0, "digits test")
    train = without(len(labels), test)
    mean, std = statistics(images[train])
    classes = tuple(str(digit) for digit in range(10))
    return ImageData(
        "digits",
        Images(images[train], labels[train]),
        Images(images[test], labels[test]),
        classes,
        mean,
        std,
        flip=False,
    )


@dataclass(frozen=True)
class Published:
    """A data set of torchvision: its class there, how its parts are asked for, what has to lie in the path, and its
    published mean and deviation (of train and unlabelled images together for STL-10)."""

    reader: str
    train: dict[str, Any]
    test: dict[str, Any]
    holds: str
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


def _published(name: str, root: Path, image_size: int | None) -> ImageData:
    from torchvision import datasets

    if root.is_file():
        raise UserError(f"{root} is a file: --path takes the folder that holds {name}, or where to download it to")
    known, existed = PUBLISHED[name], root.exists()

    def read(part: dict[str, Any]) -> Any:
        reader = getattr(datasets, known.reader)
        try:
            return reader(root, **part)
        except RuntimeError:  # how torchvision says that it is not there, or damaged
            log.warning("downloading %s to %s", name, root)
        try:
            return reader(root, **part, download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            if not existed:
                with suppress(OSError):  # it stays if anything is in it
                    root.rmdir()
            raise UserError(
                f"{name} is not in {root}, or damaged, and could not be downloaded ({error}): put {known.holds} there, "
                "or images in class folders anywhere and use --data folder"
            ) from error

    train, test = read(known.train), read(known.test)
    classes = tuple(getattr(train, "classes", None) or map(str, range(10)))  # SVHN names no classes: digits
    return ImageData(
        name, _images(train, image_size), _images(test, image_size), classes, known.mean, known.std, known.flip
    )


def _images(part: Any, image_size: int | None) -> Images:
    """The images of a part of a torchvision data set, which holds them as [N, H, W, 3] or [N, 3, H, W]."""
    pixels = torch.from_numpy(part.data)
    if pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    labels = part.targets if hasattr(part, "targets") else part.labels
    return Images(_resize(pixels, image_size).contiguous(), torch.as_tensor(labels, dtype=torch.int64))


def _resize(images: Tensor, size: int | None) -> Tensor:
    if size is None or size == images.shape[-1]:
        return images
    needed = len(images) * images.shape[1] * size**2
    if needed > LARGEST_RESIZED:
        raise UserError(
            f"--image-size {size}: {len(images)} images take {needed / 2**30:.0f} GiB: choose a smaller one"
        )
    from torchvision.transforms.v2.functional import resize

    return torch.cat([resize(piece, [size, size]) for piece in images.split(4096)])
