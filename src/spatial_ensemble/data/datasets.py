"""Image data sets by name: `load("digits")`, `load("folder", path)`."""

import difflib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spatial_ensemble.data.images import ImageData, Images, statistics
from spatial_ensemble.data.splits import draw_per_class, without
from spatial_ensemble.errors import UserError

__all__ = ["NAMES", "ImageData", "Images", "load"]

NAMES = ("digits", "cifar10", "cifar100", "svhn", "stl10", "folder")


def load(
    name: str, path: str | None = None, *, image_size: int | None = None, skip_broken: bool = False, seed: int = 0
) -> ImageData:
    """Read a data set.

    Args:
        name: "digits" (built in, 8x8), "cifar10", "cifar100", "svhn", "stl10" or "folder".
        path: where the data lie; for the sets of torchvision also where they are downloaded to.
        image_size: side in pixels that images are brought to (short side resized, then the centre cropped);
            None keeps their own, which must then be one square of at most 96 pixels.
        skip_broken: leave out broken images of a folder, and count them, where otherwise the first one is an error.
        seed: of the split of a folder that has no test/. The split of every other set is fixed.

    Returns:
        The training and test images, uint8, in memory.

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
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size {image_size}: must be at least 1 pixel")
    if name == "digits":
        if path is not None:
            raise UserError(f"digits is built in and takes no path, but --path {path} was given: use --data folder?")
        return _digits(image_size)
    if name == "folder":
        if path is None:
            raise UserError("--data folder needs --path, the folder that holds train/<class>/ or <class>/")
        from spatial_ensemble.data.folder import load_folder

        return load_folder(Path(path), image_size=image_size, skip_broken=skip_broken, seed=seed)
    raise NotImplementedError(name)


def _digits(image_size: int | None) -> ImageData:
    """1,797 scans of 10 digits; 50 of each are the test set, whatever the seed of the run, so that seeds vary only
    the training."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    test = draw_per_class(labels, [50] * 10, 0, "digits test")
    train = without(len(labels), test)
    classes = tuple(str(digit) for digit in range(10))
    mean, std = statistics(images[train])
    return ImageData(
        "digits",
        Images(images[train], labels[train]),
        Images(images[test], labels[test]),
        classes,
        mean,
        std,
        flip=False,
    )
