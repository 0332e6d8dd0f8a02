"""Mean Teacher against its formula in NumPy."""

import copy

import numpy as np
import pytest
import torch
from tiny import build, make_batch

from spatial_ensemble.methods.mean_teacher import consistency_loss, ramp_up


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_consistency_is_the_mean_squared_difference_of_probabilities() -> None:
    a, b = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    expected = np.mean((softmax(a.numpy()) - softmax(b.numpy())) ** 2)
    assert consistency_loss(a, b).item() == pytest.approx(float(expected), rel=1e-5)


def test_ramp_up() -> None:
    assert [round(ramp_up(step, 10), 6) for step in (0, 5, 10, 99)] == [0.006738, 0.286505, 1.0, 1.0]
    values = [ramp_up(step, 10) for step in range(12)]
    assert values == sorted(values)


@pytest.mark.parametrize("case", ["mean_teacher", "mean_teacher batch"])
@pytest.mark.parametrize(("step", "factor"), [(0, np.exp(-5)), (2, np.exp(-5 * 0.6**2)), (5, 1.0), (50, 1.0)])
def test_whole_loss(step: int, factor: float, case: str) -> None:
    method, teacher = build(case)
    batch = make_batch(method, step)
    student = copy.deepcopy(method.student)
    probabilities = softmax(student(batch.labelled[0]).detach().numpy())
    supervised = -np.mean([np.log(probabilities[i, label]) for i, label in enumerate(batch.labels.tolist())])
    answers = softmax(student(batch.unlabelled[0]).detach().numpy())
    twin = copy.deepcopy(teacher.module).train(case == "mean_teacher batch")
    with torch.no_grad():
        consistency = np.mean((answers - softmax(twin(batch.unlabelled[1]).numpy())) ** 2)
    loss, metrics = method(batch, teacher)
    assert loss.item() == pytest.approx(supervised + 50 * factor * consistency, rel=1e-4)
    assert metrics["loss_labelled"].item() == pytest.approx(supervised, rel=1e-4)
    assert metrics["consistency"].item() == pytest.approx(consistency, rel=1e-4)
