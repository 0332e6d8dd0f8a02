"""The linear method: a classifier on features that stay as they are."""

import math

import pytest
import torch
from tiny import build, make_batch, tensors


@pytest.mark.parametrize("case", ["linear", "linear without norm"])
def test_loss_is_that_of_frozen_features(case: str) -> None:
    method, teacher = build(case)
    method.train()
    batch = make_batch(method)
    before = tensors(method.student.backbone)
    logits = method.student.head(method.student.backbone(batch.labelled[0])).tolist()
    losses = [
        math.log(sum(math.exp(z) for z in row)) - row[label]
        for row, label in zip(logits, batch.labels.tolist(), strict=True)
    ]
    loss, _ = method(batch, teacher)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    loss.backward()
    after = tensors(method.student.backbone)
    assert all(torch.equal(after[name], value) for name, value in before.items())  # BatchNorm's statistics too
    assert not any(module.training for module in method.student.backbone.modules())
    assert all(parameter.grad is not None for parameter in method.student.head.parameters())
