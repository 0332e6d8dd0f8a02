"""Image files -> uint8 pixels."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from spatial_ensemble.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LARGEST_OWN_SIZE = 96
# EXIF orientation -> what makes the image upright
TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImageError(Exception):
    """A file that should hold an image and does not; the text says why, without the path."""


def decode(path: str | Path, size: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file, upright: [H, W, 1] where the file is grey, [H, W, 3] otherwise.

    What is transparent becomes white, 16 bits become the upper 8, palettes and CMYK become RGB, and the EXIF
    orientation is applied, where it can be read. Grey of 16 bits with an alpha channel counts as colour, because Pillow
    reads it as RGBA.

    Args:
        path: a PNG, JPEG or WebP file, whatever its ending.
        size: the short side is resized to so many pixels and the centre square cut out; None keeps the image as it is,
            which must then be a square of at most 96 pixels.

    Raises:
        BrokenImageError: the file cannot be opened or does not hold an image.
        UserError: the image is larger or no square, and no size was given.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if size is None:
                _check_own_size(path, *image.size)
            else:
                # A JPEG is decoded at a fraction of its size where twice the wanted size remains: many times faster.
                image.draft(None, (2 * size, 2 * size))
            image.load()
            turn = _turn(image)
            pixels = _flatten(image if turn is None else image.transpose(turn))
            if size is not None and pixels.size != (size, size):
                pixels = ImageOps.fit(pixels, (size, size))
            return np.atleast_3d(np.array(pixels))  # a copy: torch warns of Pillow's read-only memory
    except UnidentifiedImageError:
        raise BrokenImageError("it is not a PNG, JPEG or WebP image") from None
    except OSError as error:
        raise BrokenImageError(error.strerror or str(error)) from None
    # What Pillow's parsers raise on damaged bytes.
    except UserError:
        raise
    except (
        SyntaxError,
        ValueError,
        TypeError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise BrokenImageError(str(error)) from None


def decode_many(
    files: Sequence[str], size: int | None, threads: int = 1
) -> Iterator[NDArray[np.uint8] | BrokenImageError]:
    """The pixels of each file, as `decode` gives them, or why there are none, in the order of the files."""

    def attempt(file: str) -> NDArray[np.uint8] | BrokenImageError:
        try:
            return decode(file, size)
        except BrokenImageError as error:
            return error

    if threads == 1:
        yield from map(attempt, files)
        return
    with ThreadPoolExecutor(threads) as pool:
        # Not all files at once, so that few decoded images wait to be taken.
        for start in range(0, len(files), 1024):
            yield from pool.map(attempt, files[start : start + 1024])


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def broken_message(file: str, error: BrokenImageError) -> str:
    """What to tell the user of a broken image."""
    return f"{file} is a broken image ({error}): remove it, or leave out what is broken by --skip-broken"


def _check_own_size(path: str | Path, width: int, height: int) -> None:
    if width != height or height > LARGEST_OWN_SIZE:
        raise UserError(
            f"{path} has {width}x{height} pixels: images that are not square, or larger than {LARGEST_OWN_SIZE}, need "
            "--image-size, the side in pixels to bring them to"
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the image upright, if anything."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises all sorts on damaged EXIF data, which say nothing against the pixels
        return None


def _flatten(image: Image.Image) -> Image.Image:
    """The image in mode L (grey) or RGB, on white where it is transparent."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        deep = np.asarray(image)
        return Image.fromarray(np.where(deep == image.info.get("transparency"), 255, deep >> 8).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)
