"""What every method must hold."""

import copy
import inspect
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from tiny import CASES, CHANNELS, CLASSES, SIZE, build, make_batch, tensors

from spatial_ensemble import Teacher, methods, spatial_temporal_smoothing
from spatial_ensemble.data.batch import Batch
from spatial_ensemble.data.views import view
from spatial_ensemble.errors import UserError
from spatial_ensemble.methods import Method
from spatial_ensemble.methods.options import check_types

TEACHER_ONLY_EVALUATES = ("fixmatch student", "linear", "linear without norm")
every_case = pytest.mark.parametrize("case", CASES)
every_method = pytest.mark.parametrize("name", methods.names())


def test_every_method_is_among_the_cases() -> None:
    assert {name for name, _ in CASES.values()} == set(methods.names())


@every_case
def test_loss_is_a_finite_scalar_with_gradient(case: str) -> None:
    method, teacher = build(case)
    loss, _ = method(make_batch(method), teacher)
    assert loss.shape == () and loss.isfinite() and loss.requires_grad and loss.dtype == torch.float32


@every_case
def test_gradients_reach_all_that_is_trained_and_nothing_of_the_teacher(case: str) -> None:
    method, teacher = build(case)
    method(make_batch(method), teacher)[0].backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.ndim < 2 or parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@every_case
def test_forward_leaves_the_teachers_weights_and_mode_alone(case: str) -> None:
    method, teacher = build(case)
    before = tensors(teacher)
    method(make_batch(method), teacher)
    may_move = () if "batch" not in case else ("running_mean", "running_var", "num_batches_tracked")
    for name, value in tensors(teacher).items():
        assert torch.equal(value, before[name]) or name.endswith(may_move), name
    assert not any(module.training for module in teacher.module.modules())


@every_case
def test_metrics_are_detached_finite_scalars(case: str) -> None:
    method, teacher = build(case)
    _, metrics = method(make_batch(method), teacher)
    assert "loss" not in metrics  # that name is the training's
    for name, value in metrics.items():
        assert value.shape == () and not value.requires_grad and value.isfinite(), name


@every_case
def test_state_dict_round_trip_gives_the_same_losses_to_the_bit(case: str) -> None:
    method, teacher = build(case)
    advance(method, teacher, range(5))
    other, other_teacher = build(case, seed=1)
    other.load_state_dict(method.state_dict())
    other_teacher.load_state_dict(teacher.state_dict())
    assert advance(other, other_teacher, range(5, 8)) == advance(method, teacher, range(5, 8))


@every_case
def test_bfloat16_autocast_gives_nearly_the_same_loss(case: str) -> None:
    method, teacher = build(case)
    twin, twin_teacher = copy.deepcopy((method, teacher))
    exact, _ = method(make_batch(method), teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics = twin(make_batch(method), twin_teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and all(value.isfinite() for value in metrics.values())
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)


@every_case
def test_loss_depends_on_every_view_and_on_the_labels(case: str) -> None:
    method, teacher = build(case)
    batch = make_batch(method)

    def loss_of(changed: Batch) -> float:
        return float(copy.deepcopy(method)(changed, copy.deepcopy(teacher))[0].detach())

    reference = loss_of(batch)
    assert loss_of(batch) == reference
    for field in ("labelled", "unlabelled"):
        views = getattr(batch, field)
        for number, images in enumerate(views):
            other = (*views[:number], images.flip(3), *views[number + 1 :])
            assert loss_of(batch._replace(**{field: other})) != reference, (field, number)
    if method.labelled_views:
        assert loss_of(batch._replace(labels=(batch.labels + 1) % CLASSES)) != reference
    else:
        assert len(batch.labels) == 0


@every_case
def test_loss_depends_on_the_teacher(case: str) -> None:
    method, teacher = build(case)
    other, other_teacher = copy.deepcopy((method, teacher))
    for parameter in other_teacher.module.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    batch = make_batch(method)
    same = torch.equal(method(batch, teacher)[0], other(batch, other_teacher)[0])
    assert same == (case in TEACHER_ONLY_EVALUATES)


@every_case
def test_global_generator_is_not_touched(case: str) -> None:
    method, teacher = build(case)
    before = torch.get_rng_state()
    method(make_batch(method), teacher)
    assert torch.equal(torch.get_rng_state(), before)


@every_case
def test_a_teacher_can_be_made_of_a_student_in_use(case: str) -> None:
    method, teacher = build(case)
    advance(method, teacher, range(2))
    later = Teacher(method.student, spatial_temporal_smoothing(0.9, 0.5))
    x = torch.randn(4, CHANNELS, SIZE, SIZE)
    assert torch.equal(later(x), copy.deepcopy(method.student).eval()(x))


@every_case
def test_what_cannot_be_learnt_from_is_refused(case: str) -> None:
    method, _ = build(case)
    good = {"batch_size": 4, "processes": 1, "num_classes": CLASSES, "labelled": 10, "size": 8}
    method.check(**good)
    with pytest.raises(UserError, match="one class"):
        method.check(**{**good, "num_classes": 1})
    with pytest.raises(UserError, match=r"batch size 1 .* 2 or more"):
        method.check(**{**good, "batch_size": 1})
    with pytest.raises(UserError, match=r"batch size 4 among 4 processes .* 8 or more"):
        method.check(**{**good, "processes": 4})
    if method.labelled_views:
        with pytest.raises(UserError, match="no image has one"):
            method.check(**{**good, "labelled": 0})
    else:
        method.check(**{**good, "labelled": 0, "num_classes": 0})


@every_case
def test_every_view_is_known(case: str) -> None:
    method, _ = build(case)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for name in {*method.labelled_views, *method.unlabelled_views}:
        assert len(view(name, size=32, flip=True)(images, torch.Generator())) == 2


@every_method
def test_options_are_typed_and_documented(name: str) -> None:
    kind, options = methods.get(name), methods.options_of(name)
    assert list(inspect.signature(kind).parameters) == ["backbone", "num_classes", "options"]
    assert kind.Options is options and options() == options()  # each option has a default
    for option in fields(options):
        assert f"\n    {option.name}: " in inspect.cleandoc(options.__doc__ or ""), option
    with pytest.raises(FrozenInstanceError):
        options().anything = 1
    check_types(options())


@every_method
def test_choices_are_checked(name: str) -> None:
    options = methods.options_of(name)
    for option in ("teacher_norm", "labels_from"):
        if option in options.__dataclass_fields__:
            flag = "--" + option.replace("_", "-")
            with pytest.raises(UserError, match=rf"{flag} must be one of \w+, \w+; got 'nonsense'"):
                options(**{option: "nonsense"})


@pytest.mark.parametrize("name", ["fixmatsch", "nowhere.Method", "spatial_ensemble.methods.base.Nothing"])
def test_unknown_method_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=rf"method '{name}' is not known: use one of byol, dino, fixmatch"):
        methods.get(name)


def test_own_method_by_its_dotted_path() -> None:
    assert methods.get("spatial_ensemble.methods.byol.BYOL") is methods.get("byol")
    with pytest.raises(UserError, match="not a class derived from"):
        methods.get("torch.nn.Linear")


def test_heads_are_imported_without_warnings_and_without_the_network() -> None:
    code = """
import socket, threading
def refuse(*args, **kwargs): raise AssertionError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
from spatial_ensemble import methods, networks
for name in ("byol", "moco"):
    methods.get(name)(networks.build("small", channels=1, size=8), 10, methods.options_of(name)())
assert threading.active_count() == 1, threading.enumerate()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def advance(method: Method, teacher: Teacher, steps: range) -> list[float]:
    """Plain gradient descent without momentum, so that there is no other state."""
    losses = []
    for step in steps:
        method.zero_grad()
        loss, _ = method(make_batch(method, step), teacher)
        loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
        teacher.update(method.student)
        losses.append(loss.item())
    return losses
