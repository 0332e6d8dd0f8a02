"""A data set in a folder: train/<class>/*.png and test/<class>/*.png, or <class>/*.png alone; and unlabelled/."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatial_ensemble.data.images import ImageData, Images, Pixels, statistics
from spatial_ensemble.data.sources.decode import SUFFIXES, BrokenImageError, broken_message, cores, decode_many
from spatial_ensemble.data.sources.streaming import FileImages
from spatial_ensemble.data.splits import without
from spatial_ensemble.errors import UserError
from spatial_ensemble.seeding import derive_seed

TEST_PART = 0.2
LARGEST_IN_MEMORY = 2 * 2**30  # bytes
SAMPLE = 2048  # images that statistics are taken of if they stay in their files
UNLABELLED = ("unlabelled", "unlabeled")
LAYOUT = (
    "images are expected in train/<class>/ and test/<class>/, or in <class>/ (and those of no known class in "
    f"unlabelled/), as {', '.join(SUFFIXES)}"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The image files of a data set, sorted by class and name; `labels[i]` is the class of file i, -1 if unknown."""

    root: Path
    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]


def load_folder(path: Path, *, image_size: int | None, skip_broken: bool, seed: int) -> ImageData:
    """Read a folder of images; see `load`.

    The layout is path/train/<class>/ and path/test/<class>/ (or path/val/<class>/ if there is no test/). Without those
    two a fifth of each class, at least one image, is held out as the test set: drawn by seed and file name, so that
    adding or removing images moves at most as many others. Training images of unknown class are in unlabelled/ (or
    unlabeled/), at any depth, beside train/ or beside the classes; if there are no others, the test set is empty. Files
    are in the order of their names; hidden ones and those with other suffixes are ignored.

    Images of more than 2 GiB decoded stay in their files and are decoded when needed. Of them 2,048 training images,
    evenly spaced, decide whether all are grey, and the mean and deviation. A broken one is an error when it is read;
    with `skip_broken` all are decoded once, now, to find them.
    """
    train_root, test_root = _layout(path)
    listing = list_images(train_root, unlabelled=[root / name for root in {path, train_root} for name in UNLABELLED])
    if len(listing.classes) == 1:
        raise UserError(f"only one class, {listing.classes[0]!r}, in {train_root}: at least two are needed")
    files, labels = listing.files, listing.labels
    if test_root is not None:
        held_out = list_images(test_root)
        if unknown := sorted(set(held_out.classes) - set(listing.classes)):
            raise UserError(f"class {unknown[0]!r} of {test_root} is not in {train_root}")
        files = files + held_out.files
        labels = labels + [listing.classes.index(held_out.classes[label]) for label in held_out.labels]

    size = image_size or _own_size(files)
    needed = 3 * len(files) * size**2
    if in_memory := needed <= LARGEST_IN_MEMORY:
        images, kept = decode_files(files, image_size, skip_broken)
    else:
        gib = needed / 2**30
        log.warning("%d images take %.1f GiB decoded: they are read from their files as needed", len(files), gib)
        kept = torch.arange(len(files))
        if skip_broken:
            log.warning("decoding all of them once to find broken ones")
            kept = torch.tensor([number for number, _ in _readable(files, image_size, skip_broken)])
    known = torch.tensor(labels)[kept]
    parts = _parts(known, kept, listing, test_root, seed)
    pixels: Sequence[Pixels]
    if in_memory:
        pixels = [images[part] for part in parts]
        mean, std = statistics(images[parts[0]])
    else:
        names = [[files[number] for number in kept[part].tolist()] for part in parts]
        count = min(len(names[0]), SAMPLE)
        spaced = [names[0][number * len(names[0]) // count] for number in range(count)]
        sample, _ = decode_files(spaced, image_size, skip_broken=False)
        pixels = [FileImages(some, sample.shape[1], size, resize=image_size is not None) for some in names]
        mean, std = statistics(sample)
    train, test = (Images(some, known[part]) for some, part in zip(pixels, parts, strict=True))
    return ImageData("folder", train, test, listing.classes, mean, std, flip=True, skipped=len(files) - len(kept))


def _layout(path: Path) -> tuple[Path, Path | None]:
    """The folder of the training classes, and that of the test classes, if any."""
    if not path.is_dir():
        raise UserError(f"{path} is a file: --path takes a folder, where {LAYOUT}")
    train, tests = path / "train", [path / name for name in ("test", "val") if (path / name).is_dir()]
    if train.is_dir() and not _is_class(train):
        return train, tests[0] if tests else None
    if tests and not train.exists() and not _is_class(tests[0]):
        raise UserError(f"{path} has {tests[0].name}/ but no train/: {LAYOUT}")
    return path, None


def _is_class(folder: Path) -> bool:
    """Whether a train/ or test/ is itself a class: it holds images and no folders."""
    return bool(_entries(folder, folders=False)) and not _entries(folder, folders=True)


def list_images(root: Path, unlabelled: Sequence[Path] = ()) -> Listing:
    """The images in root/<class>/, followed by those in the folders `unlabelled`, which are no classes.

    torchvision's `make_dataset` does not fit: it takes hidden files, and those in folders below a class.

    Raises:
        UserError: neither class folders nor unlabelled images, or a class without images.
    """
    classes = [folder for folder in _entries(root, folders=True) if Path(folder) not in unlabelled]
    unknown = sorted(file for folder in unlabelled for file in files_below(folder))
    if not (classes or unknown):
        state = "holds no class folders" if any(root.iterdir()) else "is empty"
        raise UserError(f"{root} {state}: {LAYOUT}")
    names = tuple(Path(folder).name for folder in classes)
    found = [_entries(folder, folders=False) for folder in classes]
    for name, folder, files in zip(names, classes, found, strict=True):
        if not files:
            raise UserError(f"class {name!r} has no image: {folder} holds no {', '.join(SUFFIXES)}")
    if stray := _entries(root, folders=False):
        log.warning("ignored %d image(s) beside the class folders of %s", len(stray), root)
    labels = [label for label, files in enumerate(found) for _ in files] + [-1] * len(unknown)
    return Listing(root, names, [*chain(*found), *unknown], labels)


def files_below(folder: Path) -> list[str]:
    """The image files in a folder and all folders below it, sorted, without hidden ones."""
    found: list[str] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = [name for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
        found += [str(path) for name in images if (path := Path(root, name)).is_file()]  # no dangling links
    return sorted(found)


def _entries(folder: str | Path, *, folders: bool) -> list[str]:
    """The paths of the folders, or of the image files, in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            if not entry.name.startswith(".")
            and entry.is_dir() == folders
            and (folders or entry.name.lower().endswith(SUFFIXES))
        )


def decode_files(files: Sequence[str], image_size: int | None, skip_broken: bool) -> tuple[Tensor, Tensor]:
    """All images, uint8 [N, C, H, H] with C = 1 if every file is grey and 3 otherwise, and the indices of their files.

    Raises:
        UserError: a broken image (with `skip_broken`, only if all are), or, without `image_size`, images of unequal
            size, not square or larger than 96 pixels.
    """
    images = np.empty((0, 3, 0, 0), np.uint8)
    kept: list[int] = []
    grey = True
    for number, pixels in _readable(files, image_size, skip_broken):
        height, width, channels = pixels.shape
        if not kept:
            images = np.empty((len(files), 3, height, height), np.uint8)
        if height != (first := images.shape[2]):
            raise UserError(
                f"{files[number]} has {width}x{height} pixels, but {files[kept[0]]} has {first}x{first}: images of "
                "unequal size need --image-size, the side in pixels to bring them to"
            )
        images[len(kept)] = pixels.transpose(2, 0, 1)
        kept.append(number)
        grey &= channels == 1
    images = images[: len(kept), :1].copy() if grey else images[: len(kept)]
    return torch.from_numpy(images), torch.tensor(kept)


def _readable(
    files: Sequence[str], image_size: int | None, skip_broken: bool
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Index and pixels of each file; broken ones are an error, or with `skip_broken` counted and logged."""
    broken: list[str] = []
    # Images that need no image_size are so small that most of the time is Python's own, which threads cannot share.
    for number, pixels in enumerate(decode_many(files, image_size, 1 if image_size is None else cores())):
        if not isinstance(pixels, BrokenImageError):
            yield number, pixels
            continue
        broken.append(broken_message(files[number], pixels))
        if not skip_broken:
            raise UserError(broken[0])
    if len(broken) == len(files):
        raise UserError(f"none of {len(files)} images can be read; the first: {broken[0]}")
    if broken:
        log.warning("skipped %d of %d images; the first: %s", len(broken), len(files), broken[0].split(": remove")[0])


def _own_size(files: Sequence[str]) -> int:
    """The side of the first readable image."""
    sizes = (pixels.shape[0] for pixels in decode_many(files, None) if not isinstance(pixels, BrokenImageError))
    return next(sizes, 1)


def _parts(labels: Tensor, kept: Tensor, listing: Listing, test_root: Path | None, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of the training and of the test images.

    `labels` are those of the readable images, `kept` the indices of their files: those of `listing`, then the test's.
    """
    in_train = kept < len(listing.files)
    parts = torch.nonzero(in_train).flatten(), torch.nonzero(~in_train).flatten()
    if not listing.classes:
        return parts
    counts = torch.bincount(labels[in_train & (labels >= 0)], minlength=len(listing.classes)).tolist()
    name = listing.classes[counts.index(min(counts))]
    if min(counts) == 0:
        raise UserError(f"class {name!r} has no image: all of {listing.root / name} are broken")
    if test_root is not None:
        if in_train.all():
            raise UserError(f"every image of {test_root} is broken")
        return parts
    if min(counts) == 1:
        raise UserError(
            f"class {name!r} has only one image in {listing.root / name}: a training and a test image are needed "
            "(or give train/ and test/)"
        )
    chosen = []
    for label, (name, count) in enumerate(zip(listing.classes, counts, strict=True)):
        members = torch.nonzero(labels == label).flatten()
        files = [Path(listing.files[number]).name for number in kept[members].tolist()]
        draws = torch.tensor([derive_seed(seed, "test split", name, file) for file in files])
        chosen.append(members[draws.argsort()[: max(1, round(TEST_PART * count))]])
    test = torch.cat(chosen).sort().values
    return without(len(labels), test), test
