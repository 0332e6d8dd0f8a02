"""Optimizers and learning rates."""

import math

import pytest
import torch
from torch import nn

from spatial_ensemble.training.config import Config, ImagesConfig
from spatial_ensemble.training.optim import build_optimizer, learning_rate, load_state

CONFIG = Config("fixmatch", ImagesConfig("digits")).replace(steps=1600, lr=0.03, weight_decay=0.1)


def test_fixmatch_learning_rate_is_the_published_one():
    config = CONFIG.replace(lr_schedule="fixmatch")
    for step in (0, 1, 800, 1599):
        assert learning_rate(config, step) == pytest.approx(0.03 * math.cos(7 * math.pi * step / (16 * 1600)))


def test_cosine_equals_torchs_after_a_straight_warm_up():
    config = CONFIG.replace(steps=30, warmup_steps=10, lr_schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.03)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    assert [learning_rate(config, step) for step in range(10)] == pytest.approx([0.003 * (k + 1) for k in range(10)])
    for step in range(10, 30):
        assert learning_rate(config, step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["sgd", "heavyball", "lars", "larc", "adamw"])
def test_biases_and_norms_have_no_weight_decay(name):
    """With gradients of zero, decay is all that moves a weight."""
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {key: value.clone() for key, value in module.named_parameters()}
    optimizer = build_optimizer(module, CONFIG.replace(optimizer=name))
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-12)
    optimizer.step()
    moved = {key for key, value in module.named_parameters() if not torch.allclose(value, before[key], atol=1e-9)}
    if name == "adamw":  # its step does not shrink with the gradient: compare with the optimizer that has no decay
        twin = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        twin.load_state_dict(before, strict=False)
        for parameter in twin.parameters():
            parameter.grad = torch.full_like(parameter, 1e-12)
        build_optimizer(twin, CONFIG.replace(optimizer=name, weight_decay=0.0)).step()
        after = dict(twin.named_parameters())
        moved = {key for key, value in module.named_parameters() if not torch.equal(value, after[key])}
    assert moved == {"0.weight"}


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_lars_scales_the_step_by_the_trust_ratio(decay):
    """One step of LARS from the paper's formula: lr * eta * |w| / (|g| + wd |w|) * (g + wd w)."""
    module = nn.Linear(4, 4, bias=False)
    weight, gradient = module.weight.detach().clone(), torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    module.weight.grad = gradient.clone()
    build_optimizer(module, CONFIG.replace(optimizer="lars", lr=0.5, weight_decay=decay)).step()
    trust = 0.001 * weight.norm() / (gradient.norm() + decay * weight.norm())
    torch.testing.assert_close(module.weight.detach(), weight - 0.5 * trust * (gradient + decay * weight))


@pytest.mark.parametrize("name", ["sgd", "heavyball", "lars", "larc"])
def test_three_steps_with_momentum(name):
    """By hand: v <- 0.9 v + g, then w <- w - lr v, or with Nesterov w - lr (g + 0.9 v).

    LARS scales g by its trust, which LARC has in place of the learning rate.
    """
    draw = torch.Generator().manual_seed(0)
    module = nn.Linear(4, 4, bias=False)
    weight, velocity = module.weight.detach().clone(), torch.zeros(4, 4)
    optimizer = build_optimizer(module, CONFIG.replace(optimizer=name, lr=0.5))
    for _ in range(3):
        module.weight.grad = torch.randn(4, 4, generator=draw)
        gradient = module.weight.grad + 0.1 * weight
        if name in ("lars", "larc"):
            trust = 0.001 if name == "lars" else 0.02 / 0.5
            gradient *= trust * weight.norm() / (module.weight.grad.norm() + 0.1 * weight.norm())
        velocity = 0.9 * velocity + gradient
        weight = weight - 0.5 * (gradient + 0.9 * velocity if name == "sgd" else velocity)
        optimizer.step()
        torch.testing.assert_close(module.weight.detach(), weight)


def test_larc_never_steps_further_than_sgd():
    module, twin = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    twin.load_state_dict(module.state_dict())
    for network in (module, twin):  # so small a gradient that the trust ratio is far above the learning rate
        network.weight.grad = torch.full((4, 4), 1e-6)
    config = CONFIG.replace(weight_decay=1e-9, lr=1e-3)
    build_optimizer(module, config.replace(optimizer="larc")).step()
    torch.optim.SGD(twin.parameters(), lr=1e-3).step()
    torch.testing.assert_close(module.weight, twin.weight, rtol=0, atol=1e-12)


def test_frozen_parameters_are_left_out():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert [len(group["params"]) for group in build_optimizer(module, CONFIG).param_groups] == [1]


@pytest.mark.parametrize("name", ["sgd", "heavyball", "lars", "larc", "adamw"])
def test_a_parameter_may_get_its_first_gradients_later_than_others(name):
    torch.manual_seed(0)
    first, late = nn.Linear(3, 3), nn.Linear(3, 3)
    module = nn.Sequential(first, late)
    optimizer = build_optimizer(module, CONFIG.replace(optimizer=name))
    before = late.weight.detach().clone()
    for step in range(4):
        optimizer.zero_grad()
        module(torch.randn(4, 3)).square().mean().backward()
        if step < 2:
            late.weight.grad = late.bias.grad = None
        optimizer.step()
        assert torch.equal(late.weight, before) == (step < 2)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_a_state_continues_the_same_optimizer_alone(name):
    torch.manual_seed(0)
    module, config = nn.Linear(3, 3), CONFIG.replace(optimizer=name)
    optimizer = build_optimizer(module, config)
    module(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    state, key = optimizer.state_dict(), "exp_avg" if name == "adamw" else "momentum_buffer"
    load_state(build_optimizer(module, config), state)
    first = state["state"][0]
    for wrong in ({}, {key: None}, first | {key: torch.ones(2)}, first | {"more": torch.ones(())}):
        with pytest.raises((ValueError, AttributeError)):
            load_state(build_optimizer(module, config), state | {"state": {0: wrong}})
    with pytest.raises(IndexError):
        load_state(build_optimizer(module, config), state | {"state": {7: first}})
    with pytest.raises(ValueError, match="its groups hold other parameters"):
        load_state(build_optimizer(module, config), state | {"param_groups": state["param_groups"][:1]})
