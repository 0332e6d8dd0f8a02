import pickle
import subprocess
import sys
import urllib.error
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from spatial_ensemble.data.images import Images, channel_tensor, normalise, statistics
from spatial_ensemble.data.sources import NAMES, load, published
from spatial_ensemble.errors import UserError


def pixels(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, *shape), dtype=np.uint8)


def test_digits_are_those_of_scikit_learn_in_256_greys():
    data = load("digits")
    assert (data.name, data.channels, data.size, data.flip, data.skipped) == ("digits", 1, 8, False, 0)
    assert data.classes == tuple("0123456789")
    assert data.train.images.shape == (1297, 1, 8, 8) and data.test.images.shape == (500, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64
    assert torch.bincount(data.test.labels).tolist() == [50] * 10
    original = load_digits()
    expected = sorted(
        (int(label), tuple((image.flatten() * 255 / 16).round().astype(int)))
        for image, label in zip(original.images, original.target, strict=True)
    )
    found = [
        (label, tuple(image.flatten().tolist()))
        for part in (data.train, data.test)
        for image, label in zip(part.images, part.labels.tolist(), strict=True)
    ]
    assert sorted(found) == expected


def test_the_test_digits_do_not_depend_on_the_seed():
    one, other = load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(one.test.images, other.test.images) and torch.equal(one.train.labels, other.train.labels)


def test_digits_can_be_enlarged():
    data = load("digits", image_size=16)
    assert data.size == 16 and data.test.images.shape == (500, 1, 16, 16)
    assert torch.equal(data.test.labels, load("digits").test.labels)


@pytest.fixture
def unverified(monkeypatch):
    """torchvision's readers without their check sums, and no network."""
    for module in (datasets.cifar, datasets.svhn, datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: path_exists(path))

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def path_exists(path) -> bool:
    return datasets.utils.os.path.isfile(path)


def write_cifar(root, files, images, labels, meta, label_key, meta_key, names):
    root.mkdir()
    pieces = zip(files, np.array_split(images, len(files)), np.array_split(labels, len(files)), strict=True)
    for file, some, theirs in pieces:
        (root / file).write_bytes(pickle.dumps({"data": some.reshape(len(some), -1), label_key: theirs.tolist()}))
    (root / meta).write_bytes(pickle.dumps({meta_key: names}))


def test_cifar10_as_torchvision_lays_it_out(tmp_path, unverified):
    images, labels = pixels(24, 3, 32, 32), np.arange(24) % 10
    files = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    names = [f"class {number}" for number in range(10)]
    write_cifar(tmp_path / "cifar-10-batches-py", files, images, labels, "batches.meta", "labels", "label_names", names)
    data = load("cifar10", str(tmp_path))
    assert torch.equal(data.train.images, torch.from_numpy(images[:20])) and data.train.images.is_contiguous()
    assert torch.equal(data.test.images, torch.from_numpy(images[20:]))
    assert data.train.labels.tolist() + data.test.labels.tolist() == labels.tolist()
    assert data.classes == tuple(names) and data.flip
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2470, 0.2435, 0.2616)
    assert load("cifar10", str(tmp_path), image_size=16).train.images.shape == (20, 3, 16, 16)


def test_cifar100_as_torchvision_lays_it_out(tmp_path, unverified):
    images, labels = pixels(6, 3, 32, 32), np.array([99, 5, 7, 0, 1, 98])
    names = [f"class {number}" for number in range(100)]
    write_cifar(
        tmp_path / "cifar-100-python",
        ["train", "test"],
        images,
        labels,
        "meta",
        "fine_labels",
        "fine_label_names",
        names,
    )
    data = load("cifar100", str(tmp_path))
    assert torch.equal(data.train.images, torch.from_numpy(images[:3]))
    assert data.train.labels.tolist() == [99, 5, 7] and data.test.labels.tolist() == [0, 1, 98]
    assert len(data.classes) == 100 and data.flip


def test_svhn_as_torchvision_lays_it_out(tmp_path, unverified):
    images, labels = pixels(5, 3, 32, 32), np.array([[10], [1], [9], [2], [10]])
    for part in ("train", "test"):
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": labels})
    data = load("svhn", str(tmp_path))
    assert torch.equal(data.train.images, torch.from_numpy(images)) and data.train.images.is_contiguous()
    assert data.test.labels.tolist() == [0, 1, 9, 2, 0]
    assert data.classes == tuple("0123456789") and not data.flip


def test_stl10_with_its_unlabelled_images(tmp_path, unverified):
    root = tmp_path / "stl10_binary"
    root.mkdir()
    images = pixels(6, 3, 96, 96)
    parts = {"train": images[:2], "unlabeled": images[2:5], "test": images[5:]}
    for part, some in parts.items():
        (root / f"{part}_X.bin").write_bytes(some.transpose(0, 1, 3, 2).tobytes())
    (root / "train_y.bin").write_bytes(bytes([10, 1]))
    (root / "test_y.bin").write_bytes(bytes([3]))
    (root / "class_names.txt").write_text("\n".join(f"class {number}" for number in range(10)))
    data = load("stl10", str(tmp_path))
    assert torch.equal(data.train.images, torch.from_numpy(images[:5]))
    assert data.train.labels.tolist() == [9, 0, -1, -1, -1] and data.test.labels.tolist() == [2]
    assert data.size == 96 and len(data.classes) == 10 and data.flip


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10"])
def test_what_is_not_there_and_cannot_be_downloaded_is_one_clear_error(name, tmp_path, unverified, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "nowhere", None):
        with pytest.raises(UserError) as error:
            load(name, path and str(path))
        message = str(error.value)
        assert message.startswith(f"{name} is missing from {path or tmp_path}") and "no network" in message
        assert "--data folder" in message and "\n" not in message
    assert not (tmp_path / "nowhere").exists()  # no empty folder is left behind


def test_a_download_that_arrives_damaged_is_one_clear_error(tmp_path, monkeypatch):
    def damaged(url, filename, **kwargs):
        datasets.utils.pathlib.Path(filename).write_bytes(b"not what was asked for")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", damaged)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **kwargs: url)
    with pytest.raises(
        UserError, match=r"^svhn is missing from .* could not be downloaded \(File not found or corrupted"
    ):
        load("svhn", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imagenet",), f"unknown data set 'imagenet' (known: {', '.join(NAMES)})"),
        (("cifar",), f"unknown data set 'cifar' (known: {', '.join(NAMES)}): did you mean 'cifar10'?"),
        (("digit",), f"unknown data set 'digit' (known: {', '.join(NAMES)}): did you mean 'digits'?"),
        (("",), f"unknown data set '' (known: {', '.join(NAMES)})"),
        (("digits", "mine"), "digits is built in and takes no path, but --path mine was given: use --data folder?"),
        (("folder",), "--data folder needs --path, the folder that holds train/<class>/ or <class>/"),
    ],
)
def test_a_wrong_name_or_path_is_one_clear_error(arguments, message):
    with pytest.raises(UserError) as error:
        load(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("size", [0, -8, 1025])
@pytest.mark.parametrize("name", ["digits", "cifar10", "folder"])
def test_an_impossible_image_size_is_one_clear_error(name, size):
    with pytest.raises(UserError, match=f"^--image-size {size}: must be 1 to 1024 pixels$"):
        load(name, image_size=size)


def test_images_that_would_not_fit_into_memory_are_one_clear_error(monkeypatch):
    monkeypatch.setattr(published, "LARGEST_RESIZED", 1797 * 16**2 - 1)
    with pytest.raises(UserError, match=r"^--image-size 16: 1797 images take 0 GiB"):
        load("digits", image_size=16)


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"^no such path: {tmp_path}/photos$"):
        load("folder", "~/photos")


@pytest.mark.parametrize("name", ["cifar10", "folder"])
def test_a_home_folder_of_nobody_is_one_clear_error(name):
    with pytest.raises(UserError, match=r"^--path ~nobody\.at\.all/x: no such home folder: give the whole path$"):
        load(name, "~nobody.at.all/x")


def test_a_file_where_a_published_set_should_be(tmp_path):
    file = tmp_path / "cifar.tar.gz"
    file.touch()
    with pytest.raises(UserError, match=r"cifar\.tar\.gz is a file: --path takes the folder that holds cifar10"):
        load("cifar10", str(file))


def test_a_digest_tells_images_and_labels_from_others():
    data = load("digits")
    pixels, labels = data.train.images.clone(), data.test.labels.clone()
    pixels[5, 0, 0, 0] ^= 1
    labels[3] += 1
    others = [
        replace(data, train=Images(pixels, data.train.labels)),
        replace(data, test=Images(data.test.images, labels)),
        load("digits", image_size=16),
    ]
    assert data.digest == load("digits").digest and len(data.digest) == 32
    assert len({data.digest, *(other.digest for other in others)}) == 4


def test_statistics_are_exact():
    images = torch.from_numpy(pixels(5000, 3, 5, 5))
    images[:, 2] = 7
    mean, std = statistics(images)
    unit = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), unit.mean((0, 2, 3)), rtol=1e-12, atol=0)
    expected = unit.std((0, 2, 3), correction=0)
    assert std[:2] == pytest.approx(expected[:2].tolist(), rel=1e-12)
    assert std[2] == 1.0  # a channel that never varies


def test_normalised_images_have_no_mean_and_unit_deviation():
    images = torch.from_numpy(pixels(400, 3, 8, 8))
    mean, std = (channel_tensor(values) for values in statistics(images))
    normal = normalise(images, mean, std)
    assert normal.dtype == torch.float32
    assert normal.mean((0, 2, 3)).abs().max() < 1e-5
    assert (normal.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    torch.testing.assert_close(normalise(images.float() / 255, mean, std), normal, rtol=1e-5, atol=1e-6)


def test_names_and_arguments_are_checked_before_anything_heavy_is_imported():
    code = (
        "import sys, spatial_ensemble; before = set(sys.modules)\n"
        "from spatial_ensemble.data import sources\n"
        "for call in ({'name': 'cifar'}, {'name': 'digits', 'image_size': 0}, {'name': 'folder'}):\n"
        "    try: sources.check(**call)\n"
        "    except ValueError: print('refused')\n"
        "sources.check('digits', image_size=16)\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *refused, imported = done.stdout.splitlines()
    assert refused == ["refused"] * 3
    assert set(imported.split()) - sys.stdlib_module_names <= {"spatial_ensemble"}
