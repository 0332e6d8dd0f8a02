"""Optimizers and learning rates, the latter as a function of the step alone."""

import math
from typing import Any

import torch
from torch import nn

from spatial_ensemble.training.config import Config


def build_optimizer(module: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer of a configuration. Biases and norms, everything of one dimension, have no weight decay, and in
    LARS no trust ratio either.

    Source: SGD with Nesterov momentum as FixMatch's; LARS (You et al. 2017, timm's) with trust coefficient 0.001 as
    BYOL's ("lars"), or 0.02 and clipped to 1 as solo-learn's BYOL on CIFAR ("larc").
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer in ("sgd", "heavyball"):
        # Not fused: that one fails on a parameter whose gradients set in later, as those of DINO's last layer may.
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=config.optimizer == "sgd")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    from timm.optim.lars import Lars

    for group in groups:  # timm's leaves the trust ratio out wherever there is no weight decay, unless told
        group["always_adapt"] = group["params"][0].ndim > 1
    clipped = config.optimizer == "larc"
    lars: torch.optim.Optimizer = Lars(
        groups, lr=config.lr, momentum=0.9, trust_coeff=0.02 if clipped else 0.001, trust_clip=clipped
    )
    return lars


def learning_rate(config: Config, step: int) -> float:
    """The learning rate of a step, counted from 0: a straight warm-up, then the schedule over what remains.

        constant: lr        cosine: lr (1 + cos(pi k / K)) / 2        fixmatch: lr cos(7 pi k / (16 K))

    Example:
        >>> config = Config("byol", "cifar10", steps=110, warmup_steps=10, lr=1.0, lr_schedule="cosine")
        >>> [round(learning_rate(config, step), 3) for step in (0, 9, 10, 60)]
        [0.1, 1.0, 1.0, 0.5]
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    part = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.lr_schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * part)) / 2
    if config.lr_schedule == "fixmatch":
        return config.lr * math.cos(7 * math.pi * part / 16)
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use `value` for every parameter from now on."""
    for group in optimizer.param_groups:
        group["lr"] = value
