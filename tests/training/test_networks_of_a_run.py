"""What can be done with a finished run: evaluate, export and predict."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from spatial_ensemble import UserError, networks
from spatial_ensemble.data.sources import load
from spatial_ensemble.evaluation import linear_accuracy
from spatial_ensemble.methods.base import Student, classifier
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training import predict as module
from spatial_ensemble.training.build import restore
from spatial_ensemble.training.config import Config, ImagesConfig
from spatial_ensemble.training.evaluate import evaluate
from spatial_ensemble.training.export import export
from spatial_ensemble.training.predict import predict
from spatial_ensemble.training.run import train

CONFIG = Config("fixmatch", ImagesConfig("digits", labels=20)).replace(
    momentum=0.8, steps=40, batch_size=20, unlabelled_ratio=1
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(CONFIG, tmp_path_factory.mktemp("training") / "run", progress=False)


@pytest.fixture
def images(tmp_path):
    """One test image of each digit, as a file that is named after it; some deeper down."""
    data = load("digits")
    for digit in range(10):
        pixels = data.test.images[int((data.test.labels == digit).nonzero()[0])]
        file = tmp_path / "images" / ("deep" if digit > 5 else ".") / f"{digit}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(file)
    return tmp_path / "images"


def test_evaluate_agrees_with_the_run(run):
    assert run.student_accuracy > 50
    assert run.student_accuracy != run.teacher_accuracy
    assert evaluate(run.checkpoint, "digits") == (run.teacher_accuracy, "accuracy")
    assert evaluate(run.checkpoint, "digits", which="student") == (run.student_accuracy, "accuracy")


def test_each_linear_protocol_is_its_own(run):
    path = run.checkpoint
    backbone, data = restore(path)[-1].module.backbone, load("digits")
    found = {}
    for name, protocol in (("linear", "standard"), ("linear-paper", "paper")):
        found[name] = linear_accuracy(backbone, data.train, data.test, data.mean, data.std, protocol=protocol)
        assert evaluate(path, protocol=name) == (found[name], name)
    assert found["linear"] != found["linear-paper"]


def test_other_images_are_normalised_as_those_of_the_training(run, tmp_path):
    """Darker digits: their own mean and deviation would make them bright again."""
    digits, kept = load("digits"), []
    for digit in range(10):
        for number in (digits.test.labels == digit).nonzero().flatten()[:20].tolist():
            for part in ("train", "test"):
                file = tmp_path / part / f"{digit}" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(digits.test.images[number, 0].numpy() // 4).save(file)
            kept.append(number)
    network = restore(run.checkpoint)[2].student.eval()
    images, labels = digits.test.images[kept] // 4 / 255, digits.test.labels[kept]
    dark, shares = load("folder", str(tmp_path)), []
    for data in (digits, dark):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        with torch.no_grad():
            shares.append(100 * (network((images - mean) / std).argmax(1) == labels).double().mean().item())
    assert abs(shares[0] - shares[1]) > 5
    assert evaluate(run.checkpoint, "folder", str(tmp_path), which="student")[0] == pytest.approx(shares[0], abs=1)


def test_an_export_is_the_network_and_all_that_it_takes_to_use_it(run, tmp_path):
    """Built again from what the file says alone, the teacher gives the accuracy that the run reported."""
    export(run.checkpoint, tmp_path / "teacher.safetensors")
    with safe_open(tmp_path / "teacher.safetensors", "pt") as file:
        about = file.metadata()
    assert about["weights"] == "teacher"
    backbone = networks.build(about["network"], channels=int(about["channels"]), size=int(about["size"]))
    network = Student(backbone, classifier(backbone, len(json.loads(about["classes"]))))
    network.load_state_dict(load_file(tmp_path / "teacher.safetensors"))
    mean, std = (torch.tensor(json.loads(about[name])).view(-1, 1, 1) for name in ("mean", "std"))
    test = load("digits").test
    with torch.no_grad():
        answers = network.eval()((test.images / 255 - mean) / std).argmax(1)
    assert 100 * (answers == test.labels).double().mean().item() == pytest.approx(run.teacher_accuracy, abs=0.3)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]


def test_student_and_teacher_are_exported_apart(run, tmp_path):
    content = checkpoint.load(run.checkpoint)
    for which, prefix in (("student", "student."), ("teacher", "module.")):
        export(run.checkpoint, tmp_path / which, which=which)
        state = content["method" if which == "student" else "teacher"]
        for name, value in load_file(tmp_path / which).items():
            assert torch.equal(value, state[prefix + name]), name


def test_an_export_that_fails_leaves_what_was_there(run, tmp_path):
    out = tmp_path / "model.safetensors"
    out.write_text("mine")
    broken = tmp_path / "last.ckpt"
    broken.write_bytes(run.checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="cut short"):
        export(broken, out)
    assert out.read_text() == "mine"
    with pytest.raises(UserError, match="no folder"):
        export(run.checkpoint, tmp_path / "missing" / "model.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        export(run.checkpoint, tmp_path)


def test_predict_names_the_classes_of_a_folder_in_order(run, images):
    found = list(predict(run.checkpoint, images, which="student"))
    assert [path.relative_to(images).as_posix() for path, _, _ in found] == [
        *(f"{digit}.png" for digit in range(6)),
        *(f"deep/{digit}.png" for digit in range(6, 10)),
    ]
    assert sum(path.stem == name for path, name, _ in found) >= 5
    assert all(0.1 <= probability <= 1 for _, _, probability in found)
    assert list(predict(run.checkpoint, images / "3.png", which="student")) == [
        (path, name, pytest.approx(probability, abs=1e-6)) for path, name, probability in found if path.stem == "3"
    ]


def test_predict_takes_colour_and_other_sizes(run, images, tmp_path):
    [(_, expected, probability)] = predict(run.checkpoint, images / "3.png", which="student")
    grey = Image.open(images / "3.png")
    grey.convert("RGB").save(tmp_path / "colour.png")
    grey.resize((80, 80), Image.Resampling.BOX).save(tmp_path / "large.png")
    assert next(predict(run.checkpoint, tmp_path / "colour.png", which="student"))[1:] == (expected, probability)
    assert next(predict(run.checkpoint, tmp_path / "large.png", which="student"))[1] == expected


def test_predict_sees_a_colour_image_in_pillows_grey():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    grey = np.array(Image.fromarray(pixels).convert("L")).astype(int)
    assert np.abs(module._channels(pixels, 1).numpy()[0] - grey).max() <= 1


def test_predict_takes_images_in_parts(run, images, monkeypatch):
    (images / "2.png").write_text("not an image")
    whole = list(predict(run.checkpoint, images, skip_broken=True))
    monkeypatch.setattr(module, "CHUNK", 3)
    parts = list(predict(run.checkpoint, images, skip_broken=True))
    assert len(whole) == 9
    assert parts == [(path, name, pytest.approx(probability, abs=1e-6)) for path, name, probability in whole]


def test_predict_names_a_broken_image_or_skips_it(run, images):
    (images / "2.png").write_text("not an image")
    with pytest.raises(UserError, match=r"2\.png is a broken image"):
        list(predict(run.checkpoint, images))
    assert len(list(predict(run.checkpoint, images, skip_broken=True))) == 9


def test_predict_refuses_what_holds_no_image(run, tmp_path):
    (tmp_path / "note.txt").write_text("text")
    with pytest.raises(UserError, match="no image in"):
        list(predict(run.checkpoint, tmp_path))
    with pytest.raises(UserError, match="is a broken image"):
        list(predict(run.checkpoint, tmp_path / "note.txt"))
    with pytest.raises(UserError, match="no such image or folder"):
        list(predict(run.checkpoint, tmp_path / "missing"))


def test_evaluate_refuses_data_that_do_not_suit(run, tmp_path):
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "colour" / part / name).mkdir(parents=True)
            (tmp_path / "grey" / part / name).mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "colour" / part / name / f"{index}.png")
                Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey" / part / name / f"{index}.png")
    with pytest.raises(UserError, match=r"trained on images of 1 channel\(s\), folder has 3"):
        evaluate(run.checkpoint, "folder", str(tmp_path / "colour"))
    with pytest.raises(UserError, match=r"trained on the classes 0, 1, 2 ... \(10\), folder has cat, dog"):
        evaluate(run.checkpoint, "folder", str(tmp_path / "grey"))


def test_weights_of_another_network_are_refused(run, tmp_path):
    content = checkpoint.load(run.checkpoint)
    del content["format"]
    content["config"]["network"] = "wrn-28-2"
    checkpoint.save(tmp_path / "other.ckpt", content)
    with pytest.raises(UserError, match="holds the weights of another network"):
        evaluate(tmp_path / "other.ckpt", "digits")
