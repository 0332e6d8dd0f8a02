"""Which files of a folder are which images: training, test and unlabelled ones."""

import pytest
import torch
from data.pictures import TEXT, classes, picture, tensor, write

from spatial_ensemble.data.sources import load
from spatial_ensemble.data.splits import balanced_indices
from spatial_ensemble.errors import UserError


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders(tmp_path, held_out):
    train = {f"train/{name}": image for name, image in classes(3, 2).items()}
    test = {f"{held_out}/{name}": image for name, image in classes(3, 1).items() if not name.startswith("b")}
    write(tmp_path, train | test)
    data = load("folder", str(tmp_path))
    assert (data.name, data.classes, data.channels, data.size) == ("folder", ("a", "b", "c"), 3, 8)
    assert data.flip and data.skipped == 0
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and data.test.labels.tolist() == [0, 2]
    assert torch.equal(data.train.images, torch.stack([tensor(image) for image in train.values()]))
    assert torch.equal(data.test.images, torch.stack([tensor(image) for image in test.values()]))
    unit = data.train.images.double() / 255
    assert data.mean == pytest.approx(unit.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert data.std == pytest.approx(unit.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("prefix", "place"),
    [("", "unlabelled"), ("", "unlabeled"), ("train/", "unlabelled"), ("train/", "train/unlabelled")],
)
def test_images_of_no_known_class_are_trained_on_and_never_tested_on(tmp_path, prefix, place):
    labelled = write(tmp_path / "labelled", {prefix + name: image for name, image in classes(2, 10).items()})
    both = write(tmp_path / "both", {prefix + name: image for name, image in classes(2, 10).items()})
    extra = {"z.png": picture(7), "more/y.png": picture(8), "more/deep/x.png": picture(9), ".hidden/w.png": picture(10)}
    write(both / place, extra | {".v.png": picture(11), "notes.txt": b"nothing"})
    (both / place / "nowhere.png").symlink_to("gone.png")
    less, more = (load("folder", str(path)) for path in (labelled, both))
    assert less.classes == more.classes and torch.equal(less.test.images, more.test.images)
    assert more.train.labels.tolist() == [*less.train.labels.tolist(), -1, -1, -1]
    expected = [tensor(extra[name]) for name in ("more/deep/x.png", "more/y.png", "z.png")]
    assert torch.equal(more.train.images, torch.cat([less.train.images, torch.stack(expected)]))
    assert more.mean != less.mean and more.digest != less.digest
    assert balanced_indices(more.train.labels, None, more.classes, 0).tolist() == list(range(16))


@pytest.mark.parametrize("place", ["unlabelled", "train/unlabelled"])
def test_images_of_no_known_class_alone(tmp_path, place):
    write(tmp_path / place, {f"{i}.png": picture(i) for i in range(3)})
    data = load("folder", str(tmp_path))
    assert data.classes == () and data.train.labels.tolist() == [-1] * 3 and len(data.test) == 0
    assert data.test.images.shape == (0, 3, 8, 8)


def test_images_of_no_known_class_beside_train_and_test(tmp_path):
    files = {f"{part}/{name}": image for part in ("train", "test") for name, image in classes(2, 2).items()}
    write(tmp_path, files | {"unlabelled/a.png": picture(7), "unlabelled/b.png": b"broken"})
    data = load("folder", str(tmp_path), skip_broken=True)
    assert data.train.labels.tolist() == [0, 0, 1, 1, -1] and data.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(data.train.images[-1], tensor(picture(7))) and data.skipped == 1
    with pytest.raises(UserError, match=r"unlabelled/b\.png"):
        load("folder", str(tmp_path))


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_without_a_test_folder_a_fifth_of_each_class_is_held_out(tmp_path, prefix):
    files = classes(2, 10) | {f"c/{i}.png": picture(900 + i) for i in range(3)}
    write(tmp_path, {prefix + name: image for name, image in files.items()})
    splits = [load("folder", str(tmp_path), seed=seed) for seed in (0, 0, 1)]
    for data in splits:
        assert torch.bincount(data.train.labels).tolist() == [8, 8, 2]
        assert torch.bincount(data.test.labels).tolist() == [2, 2, 1]
        together = torch.cat([data.train.images, data.test.images]).flatten(1).tolist()
        assert sorted(together) == sorted(tensor(image).flatten().tolist() for image in files.values())
    assert torch.equal(splits[0].test.images, splits[1].test.images)
    assert not torch.equal(splits[0].test.images, splits[2].test.images)


def test_an_image_more_or_less_moves_at_most_one_other_of_its_class(tmp_path):
    def held_out():
        data = load("folder", str(tmp_path), skip_broken=True)
        return [{image.numpy().tobytes() for image in data.test.images[data.test.labels == label]} for label in (0, 1)]

    write(tmp_path, classes(2, 12))
    before = held_out()
    more = [{f"{name}/05{i}.png": picture(900 + 9 * i + ord(name)) for name in "ab"} for i in range(5)]
    broken = [{f"{name}/{i:02}.png": TEXT for name in "ab"} for i in range(5)]
    for change in (*more, *broken):
        write(tmp_path, change)
        after = held_out()
        for old, new in zip(before, after, strict=True):
            assert len(old - new) <= 1 and len(new - old) <= 1
        before = after


def test_classes_may_be_named_train_and_test(tmp_path):
    write(tmp_path, {f"{name}/{i}.png": picture(i) for name in ("train", "test", "bus") for i in range(2)})
    assert load("folder", str(tmp_path)).classes == ("bus", "test", "train")


@pytest.mark.parametrize("part", ["train", "test"])
def test_stray_images_beside_the_class_folders_are_left_out_and_counted(tmp_path, caplog, part):
    write(tmp_path, {f"{part}/{name}": image for part in ("train", "test") for name, image in classes(2, 2).items()})
    write(tmp_path / part, {"stray.png": picture(5), "stray.jpg": TEXT, "notes.txt": TEXT})
    data = load("folder", str(tmp_path))
    assert data.classes == ("a", "b") and len(data.train) == len(data.test) == 4
    assert caplog.messages == [f"ignored 2 image(s) beside the class folders of {tmp_path / part}"]


def test_the_order_is_that_of_the_names_however_the_files_were_written(tmp_path):
    names = ["b/10.png", "a/z.png", "b/9.png", "a/B.png", "a/a.png", "b/1.png"]
    write(
        tmp_path, {f"{part}/{name}": picture(number) for part in ("train", "test") for number, name in enumerate(names)}
    )
    data = load("folder", str(tmp_path))
    in_order = [names.index(name) for name in ("a/B.png", "a/a.png", "a/z.png", "b/1.png", "b/10.png", "b/9.png")]
    assert torch.equal(data.train.images, torch.stack([tensor(picture(number)) for number in in_order]))


def test_hidden_files_and_other_files_are_left_alone(tmp_path):
    other = ("a/._00.png", "a/.DS_Store", "a/Thumbs.db", "a/notes.txt", "a/00.png.part", "README.md", ".cache/x.png")
    write(tmp_path, classes(2, 2) | dict.fromkeys(other, b"no image"))
    (tmp_path / "a" / "folder.png").mkdir()
    write(
        tmp_path,
        {"a/upper.PNG": picture(7), "a/photo.JPEG": picture(8), "b/one.Jpg": picture(9), "b/w.webp": picture(10)},
    )
    data = load("folder", str(tmp_path))
    assert data.classes == ("a", "b") and len(data.train) + len(data.test) == 8
