"""BYOL against its formula in NumPy, and against lightly's loss."""

import copy

import numpy as np
import pytest
import torch
from lightly.loss.negative_cosine_similarity import NegativeCosineSimilarity
from tiny import build, make_batch

from spatial_ensemble.methods.byol import regression_loss


def reference(predictions: np.ndarray, projections: np.ndarray) -> float:
    distances = []
    for p, z in zip(predictions, projections, strict=True):
        distances.append(np.sum((p / np.linalg.norm(p) - z / np.linalg.norm(z)) ** 2))
    return float(np.mean(distances))


def test_regression_loss_is_the_squared_distance_of_unit_vectors() -> None:
    draw = torch.Generator().manual_seed(0)
    p, z = (torch.randn(9, 5, generator=draw) * 7 for _ in range(2))
    assert regression_loss(p, z).item() == pytest.approx(reference(p.numpy(), z.numpy()), rel=1e-5)
    torch.testing.assert_close(regression_loss(p, z), 2 + 2 * NegativeCosineSimilarity()(p, z))
    assert regression_loss(p, 3 * p).item() == pytest.approx(0, abs=1e-6)
    assert regression_loss(p, -p).item() == pytest.approx(4)


def test_each_view_predicts_the_teachers_projection_of_the_other() -> None:
    method, teacher = build("byol")
    batch = make_batch(method)
    first, second = batch.unlabelled
    twin = copy.deepcopy(method)
    expected = reference(twin.predictor(twin.student(first)).detach().numpy(), teacher(second).numpy())
    expected += reference(twin.predictor(twin.student(second)).detach().numpy(), teacher(first).numpy())
    assert method(batch, teacher)[0].item() == pytest.approx(expected, rel=1e-4)


def test_the_predictor_is_trained_but_not_smoothed() -> None:
    method, teacher = build("byol")
    own = {name for name, _ in method.named_parameters() if not name.startswith("student.")}
    assert own and all(name.startswith("predictor.") for name in own)
    assert not any("predictor" in name for name, _ in teacher.named_parameters())


@pytest.mark.parametrize("case", ["byol", "byol batch"])
def test_the_teachers_batch_norm_uses_what_was_asked_for(case: str) -> None:
    method, teacher = build(case)
    modes = []
    teacher.module.backbone.register_forward_hook(lambda module, args, output: modes.append(module.training))
    method(make_batch(method), teacher)
    assert modes == [case == "byol batch"] * 2
