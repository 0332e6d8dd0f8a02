import copy

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from spatial_ensemble import spatial_temporal_smoothing, temporal_moving_average
from spatial_ensemble.integrations.averaged_model import AveragedModel


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def train_step(model: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw))
        model(torch.randn(8, 4, generator=draw).to(model[0].weight.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use_buffers", [True, False])
def test_with_nothing_preserved_it_equals_torchs_with_the_same_decay_to_the_bit(use_buffers, dtype):
    model = network().to(dtype)
    ours = AveragedModel(model, smoothing=temporal_moving_average(0.9), use_buffers=use_buffers)
    theirs = swa_utils.AveragedModel(
        model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=use_buffers
    ).eval()
    for step in range(20):
        train_step(model, step)  # the first step comes before the first update: both copy then
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert ours.n_averaged == theirs.n_averaged
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(ours.module.state_dict()[name], value), name
    assert ours.module[1].num_batches_tracked == model[1].num_batches_tracked
    x = torch.rand(2, 4, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))


def test_update_bn_finds_the_statistics_as_it_does_for_torchs():
    model = network()
    ours = AveragedModel(model, smoothing=spatial_temporal_smoothing(0.9, 0.5))
    ours.update_parameters(model)
    theirs = swa_utils.AveragedModel(model)
    theirs.update_parameters(model)
    batches = [torch.randn(8, 4) for _ in range(3)]
    for averaged in (ours, theirs):
        swa_utils.update_bn(batches, averaged)
    assert torch.equal(ours.module[1].running_var, theirs.module[1].running_var)
    assert not ours.module.training
    assert ours.train().module.training


def test_preserved_tensors_stay():
    model = network()
    averaged = AveragedModel(model, smoothing=spatial_temporal_smoothing(0.5, 1.0))
    train_step(model, 0)
    averaged.update_parameters(model)
    copied = averaged.module[0].weight.clone()
    assert torch.equal(copied, model[0].weight)
    train_step(model, 1)
    averaged.update_parameters(model)
    assert torch.equal(averaged.module[0].weight, copied)


@pytest.mark.parametrize(("momentum", "preserve_prob"), [(0.5, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_its_ages_count_from_the_first_copy(momentum, preserve_prob):
    model = network()
    averaged = AveragedModel(model, smoothing=spatial_temporal_smoothing(momentum, preserve_prob))
    assert not any(averaged.age().values())
    moved_at = {}
    for step in range(1, 5):
        train_step(model, step)
        before = copy.deepcopy(averaged.module.state_dict())
        averaged.update_parameters(model)
        now = averaged.module.state_dict()
        moved_at |= {name: step for name, _ in model.named_parameters() if not torch.equal(now[name], before[name])}
        assert {name: int(age) for name, age in averaged.age().items()} == {n: step - at for n, at in moved_at.items()}
    assert (set(moved_at.values()) == {1}) == (1.0 in (momentum, preserve_prob))
