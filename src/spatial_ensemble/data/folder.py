"""A data set in a folder: train/<class>/*.png and test/<class>/*.png, or <class>/*.png and one split made by seed."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatial_ensemble.data.decode import SUFFIXES, BrokenImageError, decode
from spatial_ensemble.data.images import ImageData, Images, statistics
from spatial_ensemble.data.splits import draw_per_class, without
from spatial_ensemble.errors import UserError

TEST_PART = 0.2
LAYOUT = f"images are expected in train/<class>/ and test/<class>/, or in <class>/, as {', '.join(SUFFIXES)}"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The image files of a data set, sorted by class and name; `labels[i]` is the place of file i's class."""

    root: Path
    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]


def load_folder(path: Path, *, image_size: int | None, skip_broken: bool, seed: int) -> ImageData:
    """Read a folder of images into memory; see `load`.

    The layout is path/train/<class>/ and path/test/<class>/ (or path/val/<class>/ where there is no test/). Without
    those two, a fifth of each class, at least one image, drawn by seed, is held out as the test set. Files are taken
    in the order of their names; hidden ones and those of other endings are left alone.
    """
    train_root, test_root = _layout(path)
    listing = list_images(train_root)
    if len(listing.classes) < 2:
        raise UserError(f"only one class, {listing.classes[0]!r}, in {train_root}: at least two are needed")
    files, labels = listing.files, listing.labels
    if test_root is not None:
        test_listing = list_images(test_root)
        if unknown := sorted(set(test_listing.classes) - set(listing.classes)):
            raise UserError(f"class {unknown[0]!r} of {test_root} is not in {train_root}")
        place = [listing.classes.index(name) for name in test_listing.classes]
        files, labels = files + test_listing.files, labels + [place[label] for label in test_listing.labels]
    images, kept = decode_files(files, image_size, skip_broken)
    whole = Images(images, torch.tensor(labels)[kept])
    number_train = int((kept < len(listing.files)).sum())
    _check_classes(Images(images[:number_train], whole.labels[:number_train]), listing)
    if test_root is None:
        train, test = _split(whole, listing, seed)
    else:
        train = Images(images[:number_train], whole.labels[:number_train])
        test = Images(images[number_train:], whole.labels[number_train:])
        if not len(test):
            raise UserError(f"every image of {test_root} is broken")
    mean, std = statistics(train.images)
    return ImageData("folder", train, test, listing.classes, mean, std, flip=True, skipped=len(files) - len(kept))


def _layout(path: Path) -> tuple[Path, Path | None]:
    """The folder that holds the training classes, and that of the test classes, if any."""
    if not path.exists():
        raise UserError(f"no such path: {path}")
    if not path.is_dir():
        raise UserError(f"{path} is a file: --path takes a folder, where {LAYOUT}")
    # A train/ that itself holds images is a class by the name of "train".
    train, tests = path / "train", [path / name for name in ("test", "val") if (path / name).is_dir()]
    if train.is_dir() and not _entries(train, folders=False):
        return train, tests[0] if tests else None
    if tests and not train.exists() and not _entries(tests[0], folders=False):
        raise UserError(f"{path} has {tests[0].name}/ but no train/: {LAYOUT}")
    return path, None


def list_images(root: Path) -> Listing:
    """The images in root/<class>/.

    Raises:
        UserError: no class folders, or one without an image.
    """
    classes = _entries(root, folders=True)
    if not classes:
        state = "holds no class folders" if any(root.iterdir()) else "is empty"
        raise UserError(f"{root} {state}: {LAYOUT}")
    files: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        found = _entries(folder, folders=False)
        if not found:
            raise UserError(f"class {Path(folder).name!r} has no image: {folder} holds no {', '.join(SUFFIXES)}")
        files += found
        labels += [label] * len(found)
    return Listing(root, tuple(Path(folder).name for folder in classes), files, labels)


def _entries(folder: str | Path, *, folders: bool) -> list[str]:
    """The paths of the folders, or of the image files, in a folder, sorted by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            if not entry.name.startswith(".")
            and entry.is_dir() == folders
            and (folders or entry.name.lower().endswith(SUFFIXES))
        )


def decode_files(files: Sequence[str], image_size: int | None, skip_broken: bool) -> tuple[Tensor, Tensor]:
    """All images in one tensor.

    Returns:
        uint8 [N, C, H, H] with C = 1 where every file is grey and 3 otherwise, and int64 [N], which files they are.

    Raises:
        UserError: a broken image (unless `skip_broken`: then only if all are), or images of unequal size, not square or
            larger than 96 pixels and no `image_size`.
    """
    images: NDArray[np.uint8] | None = None
    kept: list[int] = []
    broken: list[str] = []
    grey = True
    for number, pixels in enumerate(_decoded(files, image_size)):
        if isinstance(pixels, BrokenImageError):
            broken.append(f"{files[number]} is a broken image ({pixels})")
            if not skip_broken:
                raise UserError(f"{broken[0]}: remove it, or leave out what is broken by --skip-broken")
            continue
        height, width, channels = pixels.shape
        if images is None:
            images = np.empty((len(files), 3, height, height), np.uint8)
        if height != images.shape[2]:
            raise UserError(
                f"{files[number]} has {width}x{height} pixels, but {files[kept[0]]} has {images.shape[2]}x"
                f"{images.shape[2]}: images of unequal size need --image-size, the side in pixels to bring them to"
            )
        images[len(kept)] = pixels.transpose(2, 0, 1)
        kept.append(number)
        grey &= channels == 1
    if images is None:
        raise UserError(f"all {len(files)} images are broken; the first: {broken[0]}")
    if broken:
        log.warning("skipped %d of %d images; the first: %s", len(broken), len(files), broken[0])
    images = images[: len(kept), :1].copy() if grey else images[: len(kept)]
    return torch.from_numpy(images), torch.tensor(kept)


def _decoded(files: Sequence[str], image_size: int | None) -> Iterator[NDArray[np.uint8] | BrokenImageError]:
    """The pixels of each file, or why there are none, in the order of the files."""

    def attempt(file: str) -> NDArray[np.uint8] | BrokenImageError:
        try:
            return decode(file, image_size)
        except BrokenImageError as error:
            return error

    if image_size is None:
        # Such small images take mostly Python's time, which threads cannot share: they would only be slower.
        yield from map(attempt, files)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Not all files at once, so that few decoded images wait to be stored.
        for start in range(0, len(files), 1024):
            yield from pool.map(attempt, files[start : start + 1024])


def _check_classes(train: Images, listing: Listing) -> None:
    counts = torch.bincount(train.labels, minlength=len(listing.classes))
    if not counts.all():
        name = listing.classes[int(counts.argmin())]
        raise UserError(f"class {name!r} has no image: all of {listing.root / name} are broken")


def _split(whole: Images, listing: Listing, seed: int) -> tuple[Images, Images]:
    """Training and test images: a fifth of each class, at least one image, is held out."""
    counts = torch.bincount(whole.labels, minlength=len(listing.classes)).tolist()
    if min(counts) < 2:
        name = listing.classes[counts.index(min(counts))]
        raise UserError(
            f"class {name!r} has only one image in {listing.root / name}: a training and a test image are needed "
            "(or give train/ and test/)"
        )
    test = draw_per_class(whole.labels, [max(1, round(TEST_PART * count)) for count in counts], seed, "test split")
    train = without(len(whole), test)
    return tuple(Images(whole.images[part], whole.labels[part]) for part in (train, test))  # type: ignore[return-value]
