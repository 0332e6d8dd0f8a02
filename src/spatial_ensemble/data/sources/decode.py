"""Image files -> uint8 pixels."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from spatial_ensemble.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LARGEST_OWN_SIZE = 96
# What Pillow's parsers raise on damaged bytes, beside OSError.
PARSER_ERRORS = SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error, Image.DecompressionBombError


class BrokenImageError(Exception):
    """The file holds no readable image; the text says why, without the path."""


def decode(path: str | Path, size: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file, upright: [H, W, 1] where the file is grey, [H, W, 3] otherwise.

    Transparency becomes white, 16 bits become the upper 8, palettes and CMYK become RGB, and the EXIF orientation is
    applied where it can be read. 16-bit grey with an alpha channel counts as colour: Pillow reads it as RGBA.

    With `size` the short side is resized to this many pixels and the centre square cropped; without, the image is kept,
    and must be a square of at most 96 pixels. The suffix of the file does not matter.

    Raises:
        BrokenImageError: the file cannot be opened or holds no image.
        UserError: the image is larger or not square, and no size was given.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if size is None and (width != height or height > LARGEST_OWN_SIZE):
                raise UserError(
                    f"{path} has {width}x{height} pixels: images that are not square, or larger than "
                    f"{LARGEST_OWN_SIZE}, need --image-size, the side in pixels to bring them to"
                )
            if size is not None:
                # Decodes a JPEG at a fraction of its size, but at least twice the wanted one: many times faster.
                image.draft(None, (2 * size, 2 * size))
            image.load()
            with suppress(Exception):  # damaged EXIF data raise nearly anything, and say nothing about the pixels
                ImageOps.exif_transpose(image, in_place=True)  # turns the pixels before it rewrites the EXIF data
            pixels = _flatten(image)
            if size is not None and pixels.size != (size, size):
                pixels = ImageOps.fit(pixels, (size, size))
            return np.atleast_3d(np.array(pixels))  # a copy: torch warns of Pillow's read-only memory
    except UnidentifiedImageError:
        raise BrokenImageError("it is not a PNG, JPEG or WebP image") from None
    except OSError as error:
        raise BrokenImageError(error.strerror or str(error)) from None
    except UserError:
        raise
    except PARSER_ERRORS as error:
        raise BrokenImageError(str(error)) from None


def decode_many(
    files: Sequence[str], size: int | None, threads: int = 1
) -> Iterator[NDArray[np.uint8] | BrokenImageError]:
    """The pixels of each file as `decode` returns them, or its error, in the order of the files."""

    def attempt(file: str) -> NDArray[np.uint8] | BrokenImageError:
        try:
            return decode(file, size)
        except BrokenImageError as error:
            return error

    if threads == 1:
        yield from map(attempt, files)
        return
    with ThreadPoolExecutor(threads) as pool:
        # In chunks, so that few decoded images are waiting.
        for start in range(0, len(files), 1024):
            yield from pool.map(attempt, files[start : start + 1024])


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def broken_message(file: str, error: BrokenImageError) -> str:
    """The error message for a broken image."""
    return f"{file} is a broken image ({error}): remove it, or add --skip-broken"


def _flatten(image: Image.Image) -> Image.Image:
    """The image in mode L (grey) or RGB, on a white background."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        deep = np.asarray(image)
        return Image.fromarray(np.where(deep == image.info.get("transparency"), 255, deep >> 8).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)
