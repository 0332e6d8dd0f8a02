"""Arms: how they are spelt, what they become, and what is refused."""

import re
from typing import Any

import pytest
import torch

from spatial_ensemble.errors import UserError
from spatial_ensemble.smoothing.rule import Smoothing
from spatial_ensemble.studies.arms import KNOWN, Arm, parse, resolve
from spatial_ensemble.training.build import build_method, build_smoothing, build_teacher
from spatial_ensemble.training.recipes import fixmatch_digits

CONFIG = fixmatch_digits()


@pytest.mark.parametrize(
    "text",
    [
        "fast: momentum=0.8 preserve-prob=0.7",
        "fast: momentum=0.8, preserve_prob=0.7",
        "fast:momentum=0.8,preserve_prob=0.7",
        "  fast : momentum=0.8   preserve_prob=0.7 ",
    ],
)
def test_the_spelling_of_an_arm(text: str) -> None:
    assert parse(text) == Arm("fast", {"momentum": 0.8, "preserve_prob": 0.7})


@pytest.mark.parametrize("text", ["fast", "fast:", "fast: momentum", "fast: momentum=", "fast: =0.8", "momentum=0.8"])
def test_what_is_no_arm(text: str) -> None:
    with pytest.raises(UserError, match=f"must be of the form .* got {re.escape(repr(text))}"):
        parse(text)


def test_the_types_of_values() -> None:
    assert parse("a: clip_grad=none").settings == {"clip_grad": None}
    assert parse("a: lr=1e-3").settings == {"lr": 0.001}  # YAML 1.1 alone would read a string
    assert parse("a: unit=layer buffers=follow steps=20").settings == {
        "unit": "layer",
        "buffers": "follow",
        "steps": 20,
    }


def test_a_field_is_given_once() -> None:
    with pytest.raises(UserError, match="gives a field twice"):
        parse("fast: momentum=0.8 momentum=0.9")


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_arm_is_the_configuration_with_this_smoothing(name: str) -> None:
    (arm,) = resolve(CONFIG, [name], [])
    assert arm.configure(CONFIG, 7) == CONFIG.replace(smoothing=name, seed=7)


def test_an_arm_starts_from_the_configuration() -> None:
    (arm,) = resolve(CONFIG.replace(smoothing="se"), [], [Arm("mine", {"momentum": 0.5})])
    assert arm.settings == {"smoothing": "se", "momentum": 0.5}


@pytest.mark.parametrize(("rule", "matched"), [("sts", "tma-matched"), ("se", "se-matched")])
def test_a_matched_average_has_the_expected_speed_of_its_arm(rule: str, matched: str) -> None:
    mine = Arm("mine", {"smoothing": rule, "momentum": 0.8, "preserve_prob": 0.7, "lr": 0.01})
    _, arm = resolve(CONFIG, [], [mine, Arm("its-average", {"matched": "mine"})])
    assert arm.settings == {"smoothing": matched, "momentum": 0.8, "preserve_prob": 0.7, "lr": 0.01}
    ours = build_smoothing(resolve(CONFIG, [], [mine])[0].configure(CONFIG, 0))
    theirs = build_smoothing(arm.configure(CONFIG, 0))
    assert theirs == ours.matched()
    assert theirs.at(0) == pytest.approx((1 - (1 - ours.at(0)[0]) * 0.3, 0.0))


def test_the_average_matched_to_a_known_arm() -> None:
    (arm,) = resolve(CONFIG, [], [Arm("mine", {"matched": "sts", "momentum": 0.9})])
    assert arm.settings == {"smoothing": "tma-matched", "momentum": 0.9}


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([Arm("sts", {"momentum": 0.8})], "arm sts: the name is taken"),
        ([Arm("a", {"momentum": 0.8}), Arm("A", {"momentum": 0.9})], "arm A: the name is taken"),
        ([Arm("a/b", {"momentum": 0.8})], "arm 'a/b': a name consists of"),
        ([Arm("", {"momentum": 0.8})], "arm '': a name consists of"),
        ([Arm("a", {"seed": 3})], "arm a: all arms of a study share seed"),
        ([Arm("a", {"data": "cifar10"})], "arm a: all arms of a study share data"),
        ([Arm("a", {"momentum": 2})], "arm a: .*momentum"),
        ([Arm("a", {"moment": 0.8})], "arm a: .*'moment'"),
        ([Arm("a", {"matched": "b"}), Arm("b", {"smoothing": "sts"})], "matched=b is neither a known arm nor"),
        ([Arm("a", {"smoothing": "tma"}), Arm("b", {"matched": "a"})], "arm b: a is tma, only sts and se have"),
        ([Arm("a", {"smoothing": "every", "preserve_prob": 1.0})], "arm a: .*preserve_prob"),
    ],
)
def test_what_is_refused(arms: list[Arm], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(CONFIG, ["tma"], arms)


def test_a_study_needs_an_arm() -> None:
    with pytest.raises(UserError, match="at least one arm"):
        resolve(CONFIG, [], [])


@pytest.mark.parametrize("settings", [{"buffer_momentum": 0.9}, {"momentum_schedule": "warmup"}, {"buffers": "copy"}])
def test_every_field_of_the_teacher_is_a_setting(settings: dict[str, Any]) -> None:
    (arm,) = resolve(CONFIG, [], [Arm("mine", settings)])
    assert arm.configure(CONFIG, 0) == CONFIG.replace(**settings)


@pytest.mark.parametrize(("momentum", "preserve_prob"), [(0.99, 0.5), (0.9, 0.7), (0.5, 0.3), (0.0, 0.8), (0.9, 0.0)])
def test_every_nth_step_has_the_expected_speed_of_sts(momentum: float, preserve_prob: float) -> None:
    sts = Smoothing(momentum, preserve_prob)
    n, rule = sts.every()
    assert n == round(1 / (1 - preserve_prob))
    assert (1 - rule.at(0)[0]) / n == pytest.approx((1 - preserve_prob) * (1 - momentum))
    assert rule.at(0)[1] == 0 and rule.buffer_momentum_at(0) == pytest.approx(momentum**n)
    assert Smoothing(momentum, preserve_prob, 0.8).every()[1].buffer_momentum_at(0) == pytest.approx(0.8**n)


def test_every_nth_step_follows_a_scheduled_momentum_but_no_scheduled_probability() -> None:
    n, rule = Smoothing(lambda step: 0.9 + step / 100, 0.5).every()
    assert n == 2
    assert rule.at(5) == pytest.approx((1 - 2 * 0.5 * 0.05, 0.0)) and rule.buffer_momentum_at(5) == pytest.approx(
        0.9025
    )
    assert Smoothing(lambda step: 0.0, 0.4).every()[1].at(0) == (0.0, 0.0)  # 1 - 1.2: a copy is as fast as it gets
    for preserve_prob in (lambda step: 0.5, 1.0):
        with pytest.raises(ValueError, match="must be a number below 1 for an average at every n-th update"):
            Smoothing(0.9, preserve_prob).every()


def test_the_teacher_of_every_moves_at_every_nth_step_alone() -> None:
    config = CONFIG.replace(smoothing="every", momentum=0.9, preserve_prob=0.7, network="small")
    content = {"channels": 1, "size": 8, "classes": [str(digit) for digit in range(10)]}
    method = build_method(config, content)
    teacher = build_teacher(config, method)
    (name, weight), moved = next(teacher.module.named_parameters()), []
    for _ in range(6):
        before = weight.clone()
        with torch.no_grad():
            method.student.get_parameter(name).add_(1.0)
        teacher.update(method.student)
        moved.append(not torch.equal(weight, before))
    assert moved == [False, False, True] * 2
    assert weight.mean() - method.student.get_parameter(name).mean() < -1


def test_buffers_have_a_momentum_of_their_own_where_they_are_averaged() -> None:
    rule = build_smoothing(CONFIG.replace(momentum=0.99, buffer_momentum=0.9))
    assert rule == Smoothing(0.99, CONFIG.teacher.preserve_prob, buffer_momentum=0.9)
    with pytest.raises(UserError, match="--buffer-momentum needs --buffers average, got --buffers copy"):
        CONFIG.replace(buffer_momentum=0.9, buffers="copy")
