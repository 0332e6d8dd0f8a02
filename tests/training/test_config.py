"""The configuration: what it refuses, what it means, and its way to YAML and back."""

import math
from dataclasses import dataclass, fields

import pytest
import yaml

from spatial_ensemble import Smoothing, UserError
from spatial_ensemble.methods.fixmatch import FixMatch
from spatial_ensemble.methods.options.fixmatch import FixMatchOptions
from spatial_ensemble.methods.options.mean_teacher import MeanTeacherOptions
from spatial_ensemble.training.build import build_smoothing
from spatial_ensemble.training.config import PARTS, Config, ImagesConfig, read_yaml

CONFIG = Config("fixmatch", ImagesConfig("digits", labels=20), options=FixMatchOptions(0.9, labels_from="student"))
CONFIG = CONFIG.replace(lr=1e-5)


def test_to_yaml_and_back_is_the_same(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    assert Config.from_dict(read_yaml(tmp_path / "config.yaml")) == CONFIG
    assert yaml.safe_load(CONFIG.to_yaml())["threshold"] == 0.9  # flat: as on the command line


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("steps", 0, "--steps must be at least 1, got 0"),
        ("steps", -5, "--steps must be at least 1, got -5"),
        ("batch_size", 0, "--batch-size must be at least 1"),
        ("labels", 0, "--labels must be at least 1"),
        ("eval_every", 0, "--eval-every must be at least 1"),
        ("checkpoint_every", -1, "--checkpoint-every must be at least 1"),
        ("image_size", 0, "--image-size must be at least 1"),
        ("seed", -1, "--seed must be at least 0"),
        ("lr", 0.0, "--lr must be a positive number"),
        ("lr", math.nan, "--lr must be a positive number"),
        ("lr", math.inf, "--lr must be a positive number"),
        ("weight_decay", -1.0, "--weight-decay must be 0 or more"),
        ("weight_decay", math.nan, "--weight-decay must be 0 or more"),
        ("clip_grad", 0.0, "--clip-grad must be a positive number"),
        ("clip_grad", math.nan, "--clip-grad must be a positive number"),
        ("warmup_steps", 2000, "--warmup-steps must be from 0 to --steps"),
        ("momentum", 1.5, r"momentum must be a number in \[0, 1\], got 1.5"),
        ("preserve_prob", math.nan, r"preserve_prob must be a number in \[0, 1\], got nan"),
        ("unit", "filter", "--unit must be one of layer, tensor, channel, element; got 'filter'"),
        ("optimizer", "adam", "--optimizer must be one of sgd, heavyball, lars, larc, adamw"),
        ("smoothing", "ema", "--smoothing must be one of sts, se, tma, tma-matched"),
        ("buffers", "follow", "--buffers follow needs --unit layer"),
    ],
)
def test_values_out_of_range_are_refused(name, value, message):
    with pytest.raises(UserError, match=message):
        CONFIG.replace(**{name: value})


@dataclass(frozen=True)
class Named:
    momentum: float = 0.5


class NamedMethod(FixMatch):
    Options = Named


def test_an_option_does_not_take_the_name_of_a_setting():
    with pytest.raises(UserError, match="NamedMethod has an option named 'momentum', which is a setting of every run"):
        Config(f"{__name__}.NamedMethod", ImagesConfig("digits"))


def test_every_setting_has_one_name():
    names = [field.name for part in PARTS.values() for field in fields(part)]
    assert len(names) == len(set(names))
    assert list(CONFIG.to_dict()) == ["method", *names, *(field.name for field in fields(FixMatchOptions))]


def test_a_configuration_from_elsewhere_is_checked():
    flat = CONFIG.to_dict()
    for name, value, message in (
        ("steps", "many", "--steps must be int; got 'many'"),
        ("steps", True, "--steps must be int; got True"),
        ("lr", None, "--lr must be float; got None"),
        ("path", 3, "--path must be str; got 3"),
        ("unlabelled_ratio", 1.5, "--unlabelled-ratio must be int; got 1.5"),
        ("labels_from", "nobody", "--labels-from must be one of teacher, student; got 'nobody'"),
        ("method", None, "the configuration needs a name as its method, got None"),
        ("method", "nothing", "method 'nothing' is not known"),
        ("data", 7, "the configuration needs a name as its data, got 7"),
        ("treshold", 0.5, "fixmatch has no option 'treshold': it has threshold, "),
    ):
        with pytest.raises(UserError, match=message):
            Config.from_dict(flat | {name: value})
    assert Config.from_dict(flat | {"lr": 1}).optim.lr == 1  # JSON and YAML write 1.0 as 1


def test_another_method_starts_from_its_defaults():
    other = CONFIG.replace(method="mean_teacher", unlabelled_ratio=3)
    assert other.options == MeanTeacherOptions(unlabelled_ratio=3) and other.optim == CONFIG.optim
    assert CONFIG.replace(method="spatial_ensemble.methods.fixmatch.FixMatch").options == CONFIG.options
    with pytest.raises(UserError, match=r"options of fixmatch must be .*FixMatchOptions"):
        Config("fixmatch", CONFIG.images, options=other.options)


def test_differences_from_a_saved_configuration():
    saved = CONFIG.to_dict()
    assert CONFIG.differences(saved) == {}
    changed = CONFIG.replace(lr=0.5, threshold=0.8, device="cpu")
    assert changed.differences(saved, may_change={"device"}) == {"lr": (1e-5, 0.5), "threshold": (0.9, 0.8)}
    del saved["labelled_apart"], saved["clip_grad"]  # saved before there were such settings
    assert CONFIG.differences(saved) == {}
    assert CONFIG.replace(labelled_apart=True).differences(saved) == {"labelled_apart": (False, True)}
    assert CONFIG.differences({"method": "gone.Away", "what": 1}) == {"method": ("gone.Away", "fixmatch")}


def test_a_bad_momentum_is_found_under_a_schedule_too():
    for schedule in ("cosine", "warmup"):
        with pytest.raises(UserError, match="momentum must be"):
            CONFIG.replace(momentum=1.5, momentum_schedule=schedule)


@pytest.mark.parametrize(
    "smoothing, expected",
    [
        ("tma", Smoothing(0.9, 0.0)),
        ("se", Smoothing(0.0, 0.75)),
        ("sts", Smoothing(0.9, 0.75)),
        ("tma-matched", Smoothing(1 - 0.25 * (1 - 0.9), 0.0, buffer_momentum=0.9)),
    ],
)
def test_all_smoothings_come_from_one_momentum_and_preserve_prob(smoothing, expected):
    assert build_smoothing(CONFIG.replace(smoothing=smoothing, momentum=0.9, preserve_prob=0.75)) == expected


def test_momentum_schedules():
    cosine = build_smoothing(CONFIG.replace(momentum=0.9, momentum_schedule="cosine", steps=100, preserve_prob=0.5))
    assert [cosine.at(step) for step in (0, 50, 100)] == [(0.9, 0.5), (pytest.approx(0.95), 0.5), (1.0, 0.5)]
    warm = build_smoothing(CONFIG.replace(momentum=0.9, momentum_schedule="warmup", smoothing="tma"))
    assert [warm.at(step)[0] for step in (0, 10, 1000)] == [0.1, 0.55, 0.9]


def test_yaml_that_is_none(tmp_path):
    path = tmp_path / "config.yaml"
    for content, message in (("steps: [1", "cannot read the configuration"), ("- 1", "must hold lines of the form")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the configuration"):
        read_yaml(path)
    with pytest.raises(UserError, match="cannot read the configuration"):
        read_yaml(tmp_path / "missing.yaml")
