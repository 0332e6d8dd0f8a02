"""What methods share."""

import numpy as np
import pytest
import torch

from spatial_ensemble.methods.base import spread


def test_spread_is_that_of_the_directions() -> None:
    assert spread(torch.tensor([[3.0, 0.0], [0.0, 5.0]])).item() == pytest.approx(1.0)
    assert spread(torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]])).item() < 1e-6  # one direction: a collapse
    outputs = np.random.default_rng(0).normal(size=(40, 6)) * np.arange(1, 41)[:, None]
    directions = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    expected = directions.std(axis=0, ddof=1).mean() * np.sqrt(6)
    np.testing.assert_allclose(spread(torch.from_numpy(outputs)).item(), expected, rtol=1e-5)
