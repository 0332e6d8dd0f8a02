"""Image data sets by name: `load("digits")`, `load("folder", path)`. Importing this module imports no torch."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from spatial_ensemble.errors import UserError

if TYPE_CHECKING:  # torch is imported with the data
    from spatial_ensemble.data.images import ImageData

NAMES = ("digits", "cifar10", "cifar100", "svhn", "stl10", "folder")
LARGEST_SIZE = 1024


def check(name: str, path: str | None = None, *, image_size: int | None = None) -> None:
    """Check the arguments of `load` without reading any data.

    Raises:
        UserError: an unknown name, an image size out of range, or a path that is missing or not used.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown data set {name!r} (known: {', '.join(NAMES)}){hint}")
    if image_size is not None and not 1 <= image_size <= LARGEST_SIZE:
        raise UserError(f"--image-size {image_size}: must be 1 to {LARGEST_SIZE} pixels")
    if name == "digits" and path is not None:
        raise UserError(f"digits is built in and takes no path, but --path {path} was given: use --data folder?")
    if name == "folder" and path is None:
        raise UserError("--data folder needs --path, the folder that holds train/<class>/ or <class>/")
    if path is not None and not (place := _expanded(path)).exists() and name == "folder":  # others are downloaded to it
        raise UserError(f"no such path: {place}")


def load(
    name: str, path: str | None = None, *, image_size: int | None = None, skip_broken: bool = False, seed: int = 0
) -> "ImageData":
    """Read a data set.

    Args:
        name: "digits" (built in, 8x8), "cifar10", "cifar100", "svhn", "stl10" or "folder".
        path: where the data are, or are downloaded to (all but digits and folder; None: a cache in the home folder).
        image_size: side in pixels to bring the images to (short side resized, then the centre cropped); None keeps
            their own, which must then be one square of at most 96 pixels.
        skip_broken: skip and count broken images of a folder; otherwise the first one is an error.
        seed: of the split of a folder without test/, which must be the same in training and evaluation. The split of
            every other set is fixed.

    Returns:
        The training and test images, uint8: in memory, or in their files if a folder's would take more than 2 GiB.

    Raises:
        UserError: as `check`, or data that cannot be read.

    Example:
        >>> load("digits").train.images.shape
        torch.Size([1297, 1, 8, 8])
    """
    check(name, path, image_size=image_size)
    if name == "folder":
        from spatial_ensemble.data.sources.folder import load_folder

        return load_folder(_expanded(str(path)), image_size=image_size, skip_broken=skip_broken, seed=seed)
    from spatial_ensemble.data.sources.published import load_digits, load_torchvision

    if name == "digits":
        return load_digits(image_size)
    return load_torchvision(name, _expanded(path or "~/.cache/spatial-ensemble"), image_size)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"--path {path}: no such home folder: give the whole path") from error
