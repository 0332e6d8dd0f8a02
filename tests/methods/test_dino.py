"""DINO's loss against plain loops and lightly's, its centre, its temperature and its head."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from lightly.loss.dino_loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from tiny import CLASSES, build, make_batch

from spatial_ensemble import Teacher, networks, temporal_moving_average
from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.dino import DINO, DINOHead, cross_view_loss
from spatial_ensemble.methods.options.dino import DINOOptions


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def reference(student: torch.Tensor, teacher: torch.Tensor, centre: torch.Tensor, temperature: float) -> float:
    """Of logits [crops, B, K] and [2, B, K], image by image and pair by pair."""
    losses = []
    for i in range(student.shape[1]):
        for t in range(2):
            for s in range(len(student)):
                if s != t:
                    target = softmax((teacher[t, i] - centre).tolist(), temperature)
                    prediction = softmax(student[s, i].tolist(), 0.1)
                    losses.append(-sum(p * math.log(q) for p, q in zip(target, prediction, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("crops", [2, 5])
def test_cross_view_loss(crops: int) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(crops, 3, 7, generator=draw), torch.randn(2, 3, 7, generator=draw)
    centre = torch.randn(7, generator=draw)
    loss = cross_view_loss(student / 0.1, ((teacher - centre) / 0.04).softmax(dim=2))
    assert loss.item() == pytest.approx(reference(student, teacher, centre, 0.04), rel=1e-4)
    lightly = DINOLoss(output_dim=7, teacher_temp=0.04)
    lightly.center.copy_(centre)
    torch.testing.assert_close(loss, lightly(list(teacher), list(student)))


@pytest.mark.parametrize(("step", "temperature"), [(0, 0.07), (2, 0.055), (4, 0.04), (9, 0.04)])
def test_whole_loss_and_the_teachers_temperature(step: int, temperature: float) -> None:
    method, teacher = build("dino")
    method.teacher_temperature = DINO(
        networks.build("small", channels=3, size=8),
        CLASSES,
        DINOOptions(warmup_teacher_temperature=0.07, temperature_warmup_steps=4),
    ).teacher_temperature
    method.centre.normal_(generator=torch.Generator().manual_seed(1))
    batch = make_batch(method, step)
    twin = copy.deepcopy(method)
    global_crops, local_crops = torch.cat(batch.unlabelled[:2]), torch.cat(batch.unlabelled[2:])
    student = torch.cat([twin.student(global_crops), twin.student(local_crops)]).unflatten(0, (5, -1))
    answers = teacher(global_crops).unflatten(0, (2, -1))
    expected = reference(student, answers, twin.centre, temperature)
    rows = [softmax((answer - twin.centre).tolist(), temperature) for answer in answers.flatten(0, 1)]
    entropy = sum(-p * math.log(p) for row in rows for p in row) / len(rows)
    loss, metrics = method(batch, teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert metrics == {"teacher_entropy": pytest.approx(entropy, rel=1e-4)}


def test_centre_is_a_saved_moving_average_of_the_teachers_logits() -> None:
    method, teacher = build("dino")
    expected = torch.zeros(24)
    for step in range(3):
        batch = make_batch(method, step)
        mean = torch.stack([teacher(crop).mean(dim=0) for crop in batch.unlabelled[:2]]).mean(dim=0)
        expected = 0.9 * expected + 0.1 * mean
        method(batch, teacher)
    torch.testing.assert_close(method.centre, expected)
    assert torch.equal(method.state_dict()["centre"], method.centre)


def test_by_default_the_teachers_statistics_are_those_of_global_crops() -> None:
    """The student's are those of local crops for the most part, which mislead a teacher on whole images."""
    backbone = networks.build("small", channels=3, size=8)
    method = DINO(backbone, CLASSES, DINOOptions(hidden_dim=8, bottleneck_dim=4, out_dim=6, local_crops=2))
    teacher = Teacher(method.student, temporal_moving_average(0.99))
    for step in range(60):
        crops = tuple(torch.randn(4, 3, size, size) + shift for size, shift in ((8, 0.0), (8, 0.0), (4, 9.0), (4, 9.0)))
        method(make_batch(method, step)._replace(unlabelled=crops), teacher)
        teacher.update(method.student)
    images, away = torch.randn(64, 3, 8, 8), {}
    for name, network in (("teacher", teacher.module), ("student", method.student)):
        normalised = copy.deepcopy(network.backbone.layers[:2]).eval()(images)
        away[name] = normalised.mean(dim=(0, 2, 3)).abs().mean().item()  # 0 where the statistics are the images' own
    assert away["teacher"] < 0.25 * away["student"], away


def test_last_layer_is_frozen_at_first() -> None:
    """Neither weight decay nor moments of its own: as if its training began when the others have had two steps."""
    method, teacher = build("dino")
    method.options = replace(method.options, freeze_last_layer_steps=2)
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1, weight_decay=0.5)
    head = method.student.head
    for step in range(3):
        last, first = head.last.weight.detach().clone(), head.layers[0].weight.detach().clone()
        optimizer.zero_grad()
        method(make_batch(method, step), teacher)[0].backward()
        method.before_optimizer_step(step)
        optimizer.step()
        assert torch.equal(head.last.weight, last) == (step < 2)
        assert not torch.equal(head.layers[0].weight, first)
    assert optimizer.state[head.last.weight]["step"] == 1


def test_head_gives_cosines_with_the_rows_of_its_last_layer() -> None:
    head = DINOHead(6, 8, 4, 10)
    x = torch.randn(3, 6)
    expected = torch.cosine_similarity(head.layers(x)[:, None], head.last.weight[None], dim=2)
    torch.testing.assert_close(head(x), expected)
    assert copy.deepcopy(head).last.weight.is_leaf


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # lightly's
@pytest.mark.parametrize("batchnorm", [False, True])
def test_head_is_lightlys(batchnorm: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    head, lightly = DINOHead(6, 8, 4, 10, batchnorm), DINOProjectionHead(6, 8, 4, 10, batch_norm=batchnorm)
    for ours, theirs in zip(head.layers, lightly.layers, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, torch.nn.Linear):
            ours.weight.data.normal_(generator=draw)
            theirs.weight.data.copy_(ours.weight)  # lightly's has no bias before BatchNorm, ours starts at 0
            if theirs.bias is not None:
                theirs.bias.data.zero_()
    lightly.last_layer.weight_v.data.copy_(head.last.weight)
    x = torch.randn(5, 6, generator=draw)
    torch.testing.assert_close(head(x), lightly(x))


def test_crops_of_two_sizes_pass_through_a_vision_transformer() -> None:
    network = networks.build("vit-mini", channels=3, size=16)
    method = DINO(network, CLASSES, DINOOptions(hidden_dim=8, bottleneck_dim=4, out_dim=6, local_crops=2))
    teacher = Teacher(method.student, temporal_moving_average(0.9))
    batch = make_batch(method)
    crops = tuple(torch.randn(2, 3, size, size) for size in (16, 16, 8, 8))
    loss, _ = method(batch._replace(unlabelled=crops), teacher)
    loss.backward()
    assert loss.isfinite() and network.pos_embed.grad.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"student_temperature": 0.0},
        {"teacher_temperature": -1.0},
        {"warmup_teacher_temperature": 0.0},
        {"centre_momentum": 1.5},
        {"local_crops": -1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        DINOOptions(**options)
