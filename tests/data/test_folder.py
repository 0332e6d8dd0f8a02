"""Images of a folder as pixels, broken ones, and the user's mistakes."""

import io
import logging
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from data.pictures import TEXT, classes, encoded, picture, tensor, write
from PIL import Image

from spatial_ensemble.data.sources import folder, load
from spatial_ensemble.data.sources.decode import BrokenImageError, decode
from spatial_ensemble.errors import UserError

# Decoding


def test_grey_folders_keep_one_channel_and_mixed_ones_are_colour(tmp_path):
    greys = {f"{part}/{name}/0.png": picture(1, mode="L") for part in ("train", "test") for name in "ab"}
    write(tmp_path, greys)
    data = load("folder", str(tmp_path))
    assert data.channels == len(data.mean) == 1
    assert torch.equal(data.train.images[0], tensor(picture(1, mode="L")))
    write(tmp_path, {"test/b/1.png": picture(2)})
    data = load("folder", str(tmp_path))
    assert data.channels == len(data.mean) == 3
    assert torch.equal(data.train.images[0], tensor(picture(1, mode="L")).expand(3, -1, -1))
    assert torch.equal(data.test.images[2], tensor(picture(2)))


def decoded(content: bytes, tmp_path: Path, size: int | None = None) -> np.ndarray:
    (tmp_path / "image").write_bytes(content)
    return decode(tmp_path / "image", size)


def test_palettes_transparency_and_sixteen_bits(tmp_path):
    grey, colour = picture(0, mode="L"), picture(1)
    palette = colour.quantize(256)
    assert (decoded(encoded(palette, "PNG"), tmp_path) == np.asarray(palette.convert("RGB"))).all()

    mask = picture(2, mode="L").point(lambda value: 255 * (value > 127))
    for image, channels in ((colour, 3), (grey, 1)):
        for alpha, expected in ((mask, None), (Image.new("L", (8, 8), 255), image)):
            translucent = image.copy()
            translucent.putalpha(alpha)
            if expected is None:
                expected = Image.composite(image, Image.new(image.mode, (8, 8), "white"), alpha)
            result = decoded(encoded(translucent, "PNG"), tmp_path)
            assert result.shape == (8, 8, channels) and (result == np.atleast_3d(np.asarray(expected))).all()

    indices = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2, "P")
    indices.putpalette([10, 20, 30, 40, 50, 60])
    result = decoded(encoded(indices, "PNG", transparency=1), tmp_path)
    assert result[0, 0].tolist() == [10, 20, 30] and result[0, 1].tolist() == [255, 255, 255]
    result = decoded(encoded(indices, "PNG", transparency=b"\xff\x00"), tmp_path)
    assert result[0, 0].tolist() == [10, 20, 30] and result[0, 1].tolist() == [255, 255, 255]

    black = Image.new("RGB", (8, 8))
    black.putpixel((0, 0), (1, 2, 3))
    result = decoded(encoded(black, "PNG", transparency=(0, 0, 0)), tmp_path)
    assert result[0, 0].tolist() == [1, 2, 3] and (result[1:] == 255).all()

    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert (decoded(encoded(deep, "PNG"), tmp_path)[..., 0] == np.asarray(grey)).all()
    assert (decoded(encoded(deep, "PNG"), tmp_path, 8)[..., 0] == np.asarray(grey)).all()

    deep = Image.fromarray(np.full((8, 8), 0x1234, np.uint16))
    deep.putpixel((0, 0), 0x1235)
    result = decoded(encoded(deep, "PNG", transparency=0x1234), tmp_path)[..., 0]
    assert result[0, 0] == 0x12 and (result[1:] == 255).all()

    bits = grey.convert("1")
    assert (decoded(encoded(bits, "PNG"), tmp_path)[..., 0] == 255 * np.asarray(bits)).all()


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    red = Image.new("RGB", (16, 16), "red").convert("CMYK")
    result = decoded(encoded(red, "JPEG", quality=100), tmp_path)
    assert result.shape == (16, 16, 3) and np.abs(result.astype(int) - [255, 0, 0]).max() < 5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_whatever_their_exif_orientation(tmp_path, kind, orientation, size):
    upright = Image.new("L", (16, 16))
    upright.paste(255, (0, 0, 8, 8))
    upright.paste(128, (8, 0, 16, 8))
    # What a camera stores for each orientation: the inverse of what a viewer is to do, as the EXIF standard lists them.
    turn = Image.Transpose
    stored_by = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = upright.transpose(stored_by[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    result = decoded(encoded(stored, kind, exif=exif, **options), tmp_path, size)[..., 0]
    assert np.abs(result.astype(int) - np.asarray(upright)).max() < 8


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Tag, type, count and value of each: written by hand, because Pillow writes none that are wrong."""
    content = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + content + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_odd_exif_data_make_no_image_broken(tmp_path, kind):
    sideways, options = (0x0112, 3, 1, b"\6"), {"lossless": True} if kind == "WEBP" else {}
    width, resolution, number = (0x0100, 2, 4, b"odd"), (0x011A, 2, 4, b"odd"), (0x0112, 2, 4, b"odd")

    def read(block):
        return decoded(encoded(picture(1, 16), kind, exif=block, **options), tmp_path)

    stored = read(b"")
    for odd in (exif(width, sideways), exif(sideways, resolution), exif(width, sideways, resolution)):
        assert (read(odd) == np.rot90(stored, -1)).all()
    for odd in (b"Exif\0\0" + bytes(40), exif(number), b"Exif\0\0II*\0"):
        assert (read(odd) == stored).all()


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (37, 8), (20, 20)])
def test_the_short_side_is_resized_and_the_centre_cut_out(tmp_path, width, height):
    image = picture(3, height, width=width)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    expected = image.resize((10, 10), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    result = decoded(encoded(image, "PNG"), tmp_path, 10)
    assert result.shape == (10, 10, 3) and (result == np.asarray(expected)).all()


def test_a_large_jpeg_is_decoded_small_with_hardly_a_difference(tmp_path):
    ramp = np.linspace(0, 255, 640)
    image = Image.fromarray(np.stack([np.tile(ramp, (480, 1))] * 3, 2).astype(np.uint8))
    content = encoded(image, "JPEG", quality=95)
    result = decoded(content, tmp_path, 32).astype(int)
    with Image.open(io.BytesIO(content)) as whole:
        expected = whole.crop((80, 0, 560, 480)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(result - np.asarray(expected)).max() <= 3


def test_many_images_resized_by_threads_are_those_read_one_by_one(tmp_path):
    write(tmp_path, {f"{part}/{name}": image for part in ("train", "test") for name, image in classes(2, 20).items()})
    files = folder.list_images(tmp_path / "train").files * 30  # more than one block of the threads
    threads, kept = folder.decode_files(files, 8, False)
    one_by_one, _ = folder.decode_files(files, None, False)
    assert len(files) > 1024 and kept.tolist() == list(range(len(files)))
    assert torch.equal(threads, one_by_one)


# Broken images

CUT_PNG, CUT_JPEG = encoded(picture(1, 32), "PNG")[:-400], encoded(picture(1, 32), "JPEG")[:-400]


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a/text.png", TEXT, "it is not a PNG, JPEG or WebP image"),
        ("b/empty.jpg", b"", "it is not a PNG, JPEG or WebP image"),
        ("a/cut.png", CUT_PNG, "image file is truncated"),
        ("b/cut.jpg", CUT_JPEG, "image file is truncated"),
        ("a/bitmap.png", encoded(picture(1), "BMP"), "it is not a PNG, JPEG or WebP image"),
    ],
)
def test_a_broken_image_is_named_or_skipped_and_counted(tmp_path, caplog, size, name, content, reason):
    whole = load("folder", str(write(tmp_path / "whole", classes(2, 5, 32))), image_size=size)
    path = write(tmp_path / "broken", classes(2, 5, 32) | {name: content})
    with pytest.raises(UserError) as error:
        load("folder", str(path), image_size=size)
    message = str(error.value)
    assert message.startswith(f"{path / name} is a broken image ({reason}") and "--skip-broken" in message
    assert "\n" not in message
    with caplog.at_level(logging.WARNING):
        data = load("folder", str(path), image_size=size, skip_broken=True)
    assert data.skipped == 1 and whole.skipped == 0
    assert "skipped 1 of 11 images" in caplog.text and str(path / name) in caplog.text
    for part in ("train", "test"):
        assert torch.equal(getattr(data, part).images, getattr(whole, part).images)
        assert torch.equal(getattr(data, part).labels, getattr(whole, part).labels)


def test_a_link_to_nowhere_and_a_file_that_may_not_be_read_are_broken(tmp_path):
    write(tmp_path, classes(2, 3))
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"link.png is a broken image \(No such file or directory\)"):
        load("folder", str(tmp_path))
    if os.geteuid():
        (tmp_path / "a" / "01.png").chmod(0)
        with pytest.raises(UserError, match=r"01.png is a broken image \(Permission denied\)"):
            load("folder", str(tmp_path))


def test_skipping_leaves_labels_with_their_images(tmp_path):
    files = {f"{part}/{name}": image for part in ("train", "test") for name, image in classes(3, 3).items()}
    write(tmp_path, files | {"train/a/01.png": TEXT, "train/c/00.png": TEXT, "test/b/02.png": TEXT})
    data = load("folder", str(tmp_path), skip_broken=True)
    assert data.skipped == 3
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2] and data.test.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert torch.equal(data.train.images[5], tensor(files["train/c/01.png"]))
    assert torch.equal(data.test.images[5], tensor(files["test/c/00.png"]))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF data in an image that it can read
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_whatever_the_damage_an_image_is_read_or_called_broken(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(picture(5, 24), kind, exif=exif)
    chance = random.Random(0)
    broken = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            assert decoded(bytes(damaged[: chance.randint(1, 2 * len(damaged))]), tmp_path, 8).dtype == np.uint8
        except BrokenImageError as error:
            assert "\n" not in str(error)
            broken += 1
    assert broken > 100


# The user's other mistakes

NO_IMAGE = "holds no .png, .jpg, .jpeg, .webp"


@pytest.mark.parametrize(
    ("files", "at", "message"),
    [
        ({}, "nowhere", "no such path: {path}"),
        ({"file": TEXT}, "file", "{path} is a file: --path takes a folder"),
        ({"empty/": b""}, "empty", "{path} is empty: images are expected in train/<class>/"),
        ({"0.png": picture(0)}, "", "{path} holds no class folders: images are expected in train/<class>/"),
        ({"train/": b""}, "", "{path}/train is empty: images are expected"),
        ({"train/notes.txt": TEXT}, "", "{path}/train holds no class folders: images are expected"),
        (classes(2, 2) | {"c/": b""}, "", "class 'c' has no image: {path}/c " + NO_IMAGE),
        (classes(2, 2) | {"c/0.gif": TEXT}, "", "class 'c' has no image: {path}/c " + NO_IMAGE),
        (classes(1, 2), "", "only one class, 'a', in {path}: at least two are needed"),
        (
            classes(2, 2) | {"c/0.png": picture(0)},
            "",
            "class 'c' has only one image in {path}/c: a training and a test",
        ),
        (classes(2, 2) | {"c/0.png": TEXT, "c/1.png": b""}, "", "class 'c' has no image: all of {path}/c are broken"),
        (
            {"a/0.png": TEXT, "b/0.png": b""},
            "",
            "none of 2 images can be read; the first: {path}/a/0.png is a broken image",
        ),
        ({"test/a/0.png": picture(0), "test/b/0.png": picture(0)}, "", "{path} has test/ but no train/: images are"),
        ({"test/a/0.png": picture(0), "test/0.png": picture(0)}, "", "{path} has test/ but no train/: images are"),
        (
            classes(2, 2) | {"b/2.png": picture(0, 9)},
            "",
            "{path}/b/2.png has 9x9 pixels, but {path}/a/00.png has 8x8: ",
        ),
        ({"a/0.png": picture(0, 8, width=9)}, "", "{path}/a/0.png has 9x8 pixels: images that are not square"),
        (classes(2, 2, size=97), "", "{path}/a/00.png has 97x97 pixels: images that are not square, or larger than 96"),
    ],
)
def test_a_folder_that_is_no_data_set_is_one_clear_error(tmp_path, caplog, files, at, message):
    for name, content in files.items():
        (tmp_path / name).mkdir() if name.endswith("/") else write(tmp_path, {name: content})
    if "a/0.png" in files and len(files) == 1:
        write(tmp_path, {"b/0.png": picture(0)})
    with pytest.raises(UserError) as error:
        load("folder", str(tmp_path / at), skip_broken="broken" in message)
    assert str(error.value).startswith(message.format(path=str(tmp_path / at)))
    assert "\n" not in str(error.value) and "ignored" not in caplog.text


@pytest.mark.parametrize(
    ("test_files", "message"),
    [
        ({"a/0.png": picture(0), "zebra/0.png": picture(0)}, "class 'zebra' of {path}/test is not in {path}/train"),
        ({"a/": b""}, "class 'a' has no image: {path}/test/a " + NO_IMAGE),
        ({"a/0.png": TEXT}, "every image of {path}/test is broken"),
    ],
)
def test_a_test_folder_that_does_not_fit_is_one_clear_error(tmp_path, test_files, message):
    write(tmp_path / "train", classes(2, 2))
    for name, content in test_files.items():
        target = tmp_path / "test" / name
        target.mkdir(parents=True) if name.endswith("/") else write(tmp_path / "test", {name: content})
    with pytest.raises(UserError) as error:
        load("folder", str(tmp_path), skip_broken=True)
    assert str(error.value).startswith(message.format(path=str(tmp_path)))


def test_images_of_any_size_are_taken_with_an_image_size(tmp_path):
    files = classes(2, 3) | {"a/large.jpg": picture(1, 300, width=200), "b/wide.png": picture(2, 10, width=97)}
    data = load("folder", str(write(tmp_path, files)), image_size=16)
    assert data.size == 16 and len(data.train) + len(data.test) == 8
