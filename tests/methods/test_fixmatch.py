"""FixMatch against a slow, readable reference."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny import CHANNELS, CLASSES, build, make_batch
from torch import Tensor, nn

from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.fixmatch import FixMatch, pseudo_label_loss
from spatial_ensemble.methods.options.fixmatch import FixMatchOptions


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[label]


def reference(weak: list[list[float]], strong: list[list[float]], threshold: float) -> tuple[float, float]:
    total, passed = 0.0, 0
    for weak_row, strong_row in zip(weak, strong, strict=True):
        label = max(range(len(weak_row)), key=lambda k: weak_row[k])
        if math.exp(-cross_entropy(weak_row, label)) >= threshold:
            total += cross_entropy(strong_row, label)
            passed += 1
    return total / len(weak), passed / len(weak)


@pytest.mark.parametrize("threshold", [0.0, 0.7, 0.95, 1.0])
def test_pseudo_label_loss_and_mask_rate(threshold: float) -> None:
    draw = torch.Generator().manual_seed(0)
    weak, strong = (3 * torch.randn(40, 6, generator=draw) for _ in range(2))
    loss, rate = pseudo_label_loss(weak, strong, threshold)
    expected = reference(weak.tolist(), strong.tolist(), threshold)
    assert (loss.item(), rate.item()) == pytest.approx(expected, rel=1e-5)
    assert threshold not in (0.7, 0.95) or 0 < rate < 1


def test_no_gradient_flows_through_the_labels() -> None:
    weak, strong = (torch.randn(8, 5, requires_grad=True) for _ in range(2))
    pseudo_label_loss(weak, strong, threshold=0.0)[0].backward()
    assert weak.grad is None and strong.grad is not None


@pytest.mark.parametrize("case", ["fixmatch", "fixmatch student", "fixmatch apart, batch"])
def test_whole_loss(case: str) -> None:
    method, teacher = build(case)
    batch = make_batch(method)
    student = copy.deepcopy(method.student)
    if case == "fixmatch":
        weak = teacher(batch.unlabelled[0])
        logits = student(torch.cat([batch.labelled[0], batch.unlabelled[1]])).tolist()
        labelled, strong = logits[: len(batch.labels)], logits[len(batch.labels) :]
        weak = weak.tolist()
    elif case == "fixmatch apart, batch":
        weak = copy.deepcopy(teacher).module.train()(batch.unlabelled[0]).tolist()
        labelled, strong = student(batch.labelled[0]).tolist(), student(batch.unlabelled[1]).tolist()
    else:
        logits = student(torch.cat([batch.labelled[0], *batch.unlabelled])).tolist()
        labelled, rest = logits[: len(batch.labels)], logits[len(batch.labels) :]
        weak, strong = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    supervised = sum(cross_entropy(row, label) for row, label in zip(labelled, batch.labels.tolist(), strict=True))
    supervised /= len(labelled)
    unsupervised, rate = reference(weak, strong, threshold=0.25)
    method.options = replace(method.options, unlabelled_weight=0.7)
    loss, metrics = method(batch, teacher)
    assert 0 < rate < 1
    assert loss.item() == pytest.approx(supervised + 0.7 * unsupervised, rel=1e-5)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {"loss_labelled": supervised, "loss_unlabelled": unsupervised, "mask_rate": rate}, rel=1e-5
    )


@pytest.mark.parametrize(
    ("labels_from", "seen"), [("teacher", ["labelled", "strong"]), ("student", ["labelled", "weak", "strong"])]
)
def test_batch_norm_sees_labelled_and_unlabelled_images_together(labels_from: str, seen: list[str]) -> None:
    class Watched(nn.Module):
        num_features = CHANNELS

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                passes.append(x)
            return x.mean(dim=(2, 3))

    passes: list[Tensor] = []
    from spatial_ensemble import Teacher, temporal_moving_average

    method = FixMatch(Watched(), CLASSES, FixMatchOptions(labels_from=labels_from))
    batch = make_batch(method)
    method(batch, Teacher(method.student, temporal_moving_average(0.9)))
    images = {"labelled": batch.labelled[0], "weak": batch.unlabelled[0], "strong": batch.unlabelled[1]}
    assert len(passes) == 1
    assert torch.equal(passes[0], torch.cat([images[name] for name in seen]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold 1.5: use a confidence from 0 to 1"),
        ({"threshold": math.nan}, r"threshold nan"),
        ({"unlabelled_ratio": 0}, r"unlabelled_ratio 0: use 1 or more"),
        ({"unlabelled_weight": -1.0}, r"unlabelled_weight -1.0: use 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FixMatchOptions(**options)
