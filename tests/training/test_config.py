"""The configuration: what it refuses, what it means, and its way to YAML and back."""

import math
from dataclasses import replace

import pytest
import yaml

from spatial_ensemble import Smoothing, UserError
from spatial_ensemble.training.config import Config, build_smoothing, read_yaml

CONFIG = Config("fixmatch", "digits", labels=20, lr=1e-5, options={"threshold": 0.9, "labels_from": "student"})


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
        ("unit", "filter", "--unit must be one of layer, tensor, channel, element"),
        ("optimizer", "adam", "--optimizer must be one of sgd, heavyball, lars, larc, adamw"),
        ("smoothing", "ema", "--smoothing must be one of sts, se, tma, tma-matched"),
        ("buffers", "follow", "--buffers follow needs --unit layer"),
    ],
)
def test_values_out_of_range_are_refused(name, value, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **{name: value})


def test_an_option_does_not_take_the_name_of_a_setting():
    for name in ("lr", "options"):
        with pytest.raises(UserError, match=f"options of fixmatch hold '{name}', which is a setting of every run"):
            replace(CONFIG, options={name: 0.5})


def test_a_bad_momentum_is_found_under_a_schedule_too():
    for schedule in ("cosine", "warmup"):
        with pytest.raises(UserError, match="momentum must be"):
            replace(CONFIG, momentum=1.5, momentum_schedule=schedule)


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
    assert build_smoothing(replace(CONFIG, smoothing=smoothing, momentum=0.9, preserve_prob=0.75)) == expected


def test_momentum_schedules():
    cosine = build_smoothing(replace(CONFIG, momentum=0.9, momentum_schedule="cosine", steps=100, preserve_prob=0.5))
    assert [cosine.at(step) for step in (0, 50, 100)] == [(0.9, 0.5), (pytest.approx(0.95), 0.5), (1.0, 0.5)]
    warm = build_smoothing(replace(CONFIG, momentum=0.9, momentum_schedule="warmup", smoothing="tma"))
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
