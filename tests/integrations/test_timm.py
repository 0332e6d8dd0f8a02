import copy
import inspect

import pytest
import timm.utils
import torch
from torch import nn

from spatial_ensemble.integrations.timm import ModelEmaV3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def train_step(model: nn.Module, step: int) -> None:
    """A stand-in for training: new weights, and new BatchNorm statistics, by step."""
    draw = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw))
        model(torch.randn(8, 4, generator=draw))


@pytest.mark.parametrize("give_step", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decay": 0.9, "update_after_step": 3},
        {"decay": 0.9, "use_warmup": True, "warmup_gamma": 2.0, "warmup_power": 0.75, "min_decay": 0.4},
        {"decay": 0.9, "exclude_buffers": True},
        {"decay": 0.9, "dtype": torch.float64},
    ],
    ids=str,
)
def test_with_nothing_preserved_it_has_the_values_of_timms(options, give_step):
    model = network()
    ours, theirs = ModelEmaV3(model, **options), timm.utils.ModelEmaV3(model, **options)
    for step in range(1, 13):
        train_step(model, step)
        for ema in (ours, theirs):
            ema.update(model, step=step if give_step else None)
    expected = theirs.module.state_dict()
    assert ours.module.state_dict().keys() == expected.keys()
    for name, value in ours.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    assert [ours.get_decay(step) for step in (None, 0, 1, 4, 5, 9, 10**6)] == pytest.approx(
        [theirs.get_decay(step) for step in (None, 0, 1, 4, 5, 9, 10**6)]
    )
    x = torch.rand(2, 4)
    torch.testing.assert_close(ours(x.to(expected["0.weight"].dtype)), theirs(x.to(expected["0.weight"].dtype)))


def test_it_takes_timms_arguments_in_timms_order():
    ours, theirs = (list(inspect.signature(ema).parameters) for ema in (ModelEmaV3, timm.utils.ModelEmaV3))
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_as_timms_argument_says(dtype):
    model = nn.Linear(64, 64, dtype=dtype)
    nn.init.ones_(model.weight)
    ours, nearest = ModelEmaV3(model), ModelEmaV3(model, stochastic_rounding=False)
    theirs = timm.utils.ModelEmaV3(model, stochastic_rounding=False)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        for ema in (ours, nearest, theirs):
            ema.update(model)
    assert torch.equal(nearest.module.weight, theirs.module.weight)
    assert (ours.module.weight.float() - 1).mean().item() == pytest.approx(1 - 0.9999**100, rel=0.2)


def test_preserved_tensors_stay_and_until_update_after_step_it_is_a_copy():
    model = network()
    ema = ModelEmaV3(model, decay=0.5, update_after_step=2, preserve_prob=0.5, seed=3)
    fates = set()
    for step in range(1, 20):
        train_step(model, step)
        before = copy.deepcopy(ema.module.state_dict())
        ema.update(model, step=step)
        for name, parameter in model.named_parameters():
            now = ema.module.state_dict()[name]
            if step <= 3:
                assert torch.equal(now, parameter)
            elif torch.equal(now, before[name]):
                fates.add("preserved")
            else:
                torch.testing.assert_close(now, (before[name] + parameter) / 2)
                fates.add("averaged")
    assert fates == {"preserved", "averaged"}


def test_its_ages_are_those_of_the_updates_it_made():
    model = network()
    ema = ModelEmaV3(model, decay=0.5, update_after_step=2, preserve_prob=0.5)
    moved_at = dict.fromkeys(dict(model.named_parameters()), 0)
    for step in range(1, 9):
        train_step(model, step)
        before = copy.deepcopy(ema.module.state_dict())
        ema.update(model, step=step)
        now = ema.module.state_dict()
        moved_at |= {name: step for name in moved_at if not torch.equal(now[name], before[name])}
        assert {name: int(age) for name, age in ema.age().items()} == {name: step - at for name, at in moved_at.items()}


def test_resumed_from_weights_alone_it_goes_on_with_the_draws_of_the_given_step():
    def run(first: int, last: int, model: nn.Module, ema: ModelEmaV3) -> None:
        for step in range(first, last):
            train_step(model, step)
            ema.update(model, step=step)

    model = network()
    ema = ModelEmaV3(model, decay=0.9, preserve_prob=0.5)
    run(1, 10, model, ema)
    resumed_model = copy.deepcopy(model)
    resumed = ModelEmaV3(network(), decay=0.9, preserve_prob=0.5)
    resumed.module.load_state_dict(timm.utils.get_state_dict(ema))  # what timm's CheckpointSaver stores
    run(10, 20, model, ema)
    run(10, 20, resumed_model, resumed)
    for name, value in ema.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_set_copies_and_bad_values_are_refused_at_once():
    model = network()
    ema = ModelEmaV3(model)
    train_step(model, 1)
    ema.set(model)
    assert torch.equal(ema.module[1].running_mean, model[1].running_mean)
    with pytest.raises(ValueError, match="momentum"):
        ModelEmaV3(model, decay=1.5)
    with pytest.raises(ValueError, match="preserve_prob"):
        ModelEmaV3(model, preserve_prob=-0.1)


def test_it_can_be_copied_without_its_original():
    model = network()
    ema = ModelEmaV3(model, decay=0.9)
    twin = copy.deepcopy(ema)
    train_step(model, 1)
    twin.decay = 0.0
    twin.update(model)
    assert torch.equal(twin.module[0].weight, model[0].weight)
    assert not torch.equal(ema.module[0].weight, model[0].weight)
