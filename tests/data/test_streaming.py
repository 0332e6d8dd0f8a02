import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from spatial_ensemble.data.images import statistics
from spatial_ensemble.data.loaders import Batches
from spatial_ensemble.data.sources import folder, load
from spatial_ensemble.data.sources.streaming import FileImages, Stream
from spatial_ensemble.data.views import View, view
from spatial_ensemble.errors import UserError
from spatial_ensemble.evaluation.predict import predict

# torch's DataLoader forks its workers: newer Pythons warn of its threads, and torch itself on a single core.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def picture(seed: int, shape: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write(root, shapes):
    for part in ("train", "test"):
        for name in "abc":
            (root / part / name).mkdir(parents=True)
            for number in range(6):
                seed = 10 * ord(name) + number + (part == "test")
                picture(seed, shapes[number % len(shapes)]).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture
def photos(tmp_path):
    """Colour images of many sizes."""
    return write(tmp_path / "photos", [(20, 30, 3), (40, 12, 3), (16, 16, 3)])


def load_both(path, monkeypatch, **options):
    in_memory = load("folder", str(path), **options)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "LARGEST_IN_MEMORY", 0)
        streamed = load("folder", str(path), **options)
    assert isinstance(in_memory.train.images, torch.Tensor) and isinstance(streamed.train.images, FileImages)
    return in_memory, streamed


@pytest.mark.parametrize("shapes", [[(16, 16, 3)], [(16, 16)], [(16, 16, 3), (16, 16)]])
@pytest.mark.parametrize("image_size", [None, 16, 9])
def test_images_in_their_files_are_those_in_memory(tmp_path, monkeypatch, caplog, shapes, image_size):
    with caplog.at_level(logging.WARNING):
        in_memory, streamed = load_both(write(tmp_path, shapes), monkeypatch, image_size=image_size)
    assert "36 images take 0.0 GiB decoded: they are read from their files as needed" in caplog.text
    assert (streamed.classes, streamed.mean, streamed.std) == (in_memory.classes, in_memory.mean, in_memory.std)
    assert (streamed.channels, streamed.size, streamed.flip) == (in_memory.channels, in_memory.size, in_memory.flip)
    for one, other in ((streamed.train, in_memory.train), (streamed.test, in_memory.test)):
        assert one.images.shape == other.images.shape and len(one) == len(one.images) == 18
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images[:], other.images[:])
        for index in (torch.tensor([17, 3, 3]), torch.tensor([4])):
            assert torch.equal(one.images[index], other.images[index])


def test_images_stay_in_their_files_from_two_gibibytes_on(photos, monkeypatch):
    needed = 36 * 3 * 8 * 8
    for limit, kind in ((needed, torch.Tensor), (needed - 1, FileImages)):
        monkeypatch.setattr(folder, "LARGEST_IN_MEMORY", limit)
        assert isinstance(load("folder", str(photos), image_size=8).train.images, kind)


@pytest.mark.parametrize(("sample", "used"), [(4, [0, 4, 9, 13]), (18, range(18)), (19, range(18))])
def test_evenly_spaced_images_stand_for_all(photos, monkeypatch, sample, used):
    monkeypatch.setattr(folder, "SAMPLE", sample)
    in_memory, streamed = load_both(photos, monkeypatch, image_size=8)
    assert (streamed.mean, streamed.std) == statistics(in_memory.train.images[list(used)])


def test_the_digest_goes_by_class_folders_and_names(photos, tmp_path, monkeypatch):
    def digest(path):
        return load_both(path, monkeypatch, image_size=8)[1].digest

    before = digest(photos)
    photos = photos.rename(tmp_path / "moved")
    assert digest(photos) == before
    a, b = photos / "train" / "a", photos / "train" / "b"
    digests = {before}
    for old, new in ((a / "0.png", a / "00.png"), (a / "00.png", b / "00.png"), (b / "5.png", a / "5b.png")):
        old.rename(new)
        digests.add(digest(photos))
    assert len(digests) == 4


def test_a_split_by_seed_is_the_same_streamed(photos, monkeypatch):
    in_memory, streamed = load_both(photos / "train", monkeypatch, image_size=8, seed=3)
    assert torch.equal(streamed.test.images[:], in_memory.test.images)
    assert len(streamed.train) == 15 and torch.equal(streamed.train.labels, in_memory.train.labels)


def test_images_in_their_files_are_evaluated_like_those_in_memory(photos, monkeypatch):
    in_memory, streamed = load_both(photos, monkeypatch, image_size=8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    outputs = [predict(network, data.test.images, data.mean, data.std, batch_size=7) for data in (in_memory, streamed)]
    assert torch.equal(*outputs)


def batches(data, **changes):
    options = {
        "labelled_views": [view("weak", size=8, flip=True)],
        "unlabelled_views": [View(lambda images, draws: images / 512 + draws.float().view(-1, 1, 1, 1) / 2, 1)],
        "batch_size": 4,
        "unlabelled_batch_size": 8,
        "mean": data.mean,
        "std": data.std,
        "seed": 5,
        "workers": 2,
    }
    return Batches(data.train, torch.tensor([0, 1, 7, 13]), **{**options, **changes})


def test_streamed_batches_are_those_from_memory_from_any_step_on(photos, monkeypatch):
    in_memory, streamed = load_both(photos, monkeypatch, image_size=8)
    expected = batches(in_memory)
    before = torch.get_rng_state()
    for steps in (range(8), range(5, 7), [9, 2, 2]):  # from the start, resumed, and out of order
        actual = batches(streamed)
        for step in steps:
            one, other = actual(step), expected(step)
            assert one.step == other.step == step
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.labelled[0], other.labelled[0])
            assert torch.equal(one.unlabelled[0], other.unlabelled[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_each_rank_reads_its_own_rows_alone(photos, monkeypatch):
    in_memory, streamed = load_both(photos, monkeypatch, image_size=8)
    expected, parts = batches(in_memory)(3), [batches(streamed, rank=rank, world_size=2)(3) for rank in range(2)]
    assert torch.equal(torch.cat([part.labelled[0] for part in parts]), expected.labelled[0])
    assert torch.equal(torch.cat([part.unlabelled[0] for part in parts]), expected.unlabelled[0])


def test_methods_without_labels_stream_too(photos, monkeypatch):
    _, streamed = load_both(photos, monkeypatch, image_size=8)
    batch = batches(streamed, labelled_views=[])(0)
    assert batch.labelled == () and len(batch.labels) == 0 and batch.unlabelled[0].shape == (8, 3, 8, 8)


def test_what_workers_are_given_can_be_pickled(photos, monkeypatch):
    _, streamed = load_both(photos, monkeypatch, image_size=8)
    stream = batches(streamed)._images
    assert isinstance(stream, Stream)
    again = pickle.loads(pickle.dumps(stream.steps))
    assert all(torch.equal(*pair) for pair in zip(again[2], stream.steps[2], strict=True))


# Broken images


def test_a_broken_image_met_by_a_worker_is_one_clear_error(photos, monkeypatch):
    _, streamed = load_both(photos, monkeypatch, image_size=8)
    file = photos / "train" / "b" / "3.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError) as error:
        [batches(streamed)(step) for step in range(3)]
    assert str(error.value).startswith(f"{file} is a broken image (") and "\n" not in str(error.value)


def test_broken_images_are_looked_for_at_once_where_they_are_to_be_skipped(photos, monkeypatch, caplog):
    for name in ("train/a/0.png", "test/c/5.png"):
        (photos / name).write_text("no image")
    with caplog.at_level(logging.WARNING):
        in_memory, streamed = load_both(photos, monkeypatch, image_size=8, skip_broken=True)
    assert streamed.skipped == in_memory.skipped == 2
    assert caplog.text.count("skipped 2 of 36 images; the first: ") == 2 and "train/a/0.png" in caplog.text
    for one, other in ((streamed.train, in_memory.train), (streamed.test, in_memory.test)):
        assert torch.equal(one.images[:], other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((9, 9), "has 9x9 pixels and 1 channel(s)"), ((16, 16, 3), "has 16x16 pixels and 3 channel(s)")],
)
def test_an_image_unlike_the_others_is_one_clear_error(tmp_path, monkeypatch, shape, message):
    _, streamed = load_both(write(tmp_path, [(16, 16)]), monkeypatch)
    picture(0, shape).save(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(UserError) as error:
        streamed.train.images[:]
    assert f"{tmp_path / 'train/a/1.png'} {message}, unlike the 16x16 and 1 of the others" in str(error.value)


def test_a_folder_of_broken_images_alone_is_one_clear_error(photos, monkeypatch):
    for file in photos.rglob("*.png"):
        file.write_text("no image")
    monkeypatch.setattr(folder, "LARGEST_IN_MEMORY", 0)
    with pytest.raises(
        UserError, match=r"none of 36 images can be read; the first: .*/train/a/0\.png is a broken image"
    ):
        load("folder", str(photos), image_size=8, skip_broken=True)
