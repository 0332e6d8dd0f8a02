"""Optimizers, and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn

from spatial_ensemble.training.config import Config


def build_optimizer(module: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer of a configuration. Parameters of one dimension (biases, norms) have no weight decay, and in LARS
    no trust ratio.

    Source: SGD with Nesterov momentum as FixMatch's; LARS (You et al. 2017, timm's) with trust coefficient 0.001 as
    BYOL's ("lars"), or 0.02 and clipped to 1 as solo-learn's BYOL on CIFAR ("larc").
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.optim.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optim.optimizer in ("sgd", "heavyball"):
        # Not fused: that fails if the gradients of a parameter start later, as those of DINO's last layer may.
        return torch.optim.SGD(groups, lr=config.optim.lr, momentum=0.9, nesterov=config.optim.optimizer == "sgd")
    if config.optim.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.optim.lr, fused=True)
    from timm.optim.lars import Lars

    for group in groups:  # timm omits the trust ratio without weight decay by default
        group["always_adapt"] = group["params"][0].ndim > 1
    clipped = config.optim.optimizer == "larc"
    lars: torch.optim.Optimizer = Lars(
        groups, lr=config.optim.lr, momentum=0.9, trust_coeff=0.02 if clipped else 0.001, trust_clip=clipped
    )
    return lars


def learning_rate(config: Config, step: int) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up, then the schedule over the remaining steps.

        constant: lr        cosine: lr (1 + cos(pi k / K)) / 2        fixmatch: lr cos(7 pi k / (16 K))

    Example:
        >>> from spatial_ensemble.training.config import ImagesConfig
        >>> config = Config("byol", ImagesConfig("cifar10")).replace(steps=110, warmup_steps=10, lr=1.0)
        >>> [round(learning_rate(config, step), 3) for step in (0, 9, 10, 60)]
        [0.1, 1.0, 1.0, 0.5]
    """
    if step < config.optim.warmup_steps:
        return config.optim.lr * (step + 1) / config.optim.warmup_steps
    part = (step - config.optim.warmup_steps) / max(1, config.run.steps - config.optim.warmup_steps)
    if config.optim.lr_schedule == "cosine":
        return config.optim.lr * (1 + math.cos(math.pi * part)) / 2
    if config.optim.lr_schedule == "fixmatch":
        return config.optim.lr * math.cos(7 * math.pi * part / 16)
    return config.optim.lr


def load_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Continue from a saved state; all settings stay those of the configuration.

    Raises:
        ValueError: it is the state of another optimizer, or of other parameters.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in groups]:
        raise ValueError("its groups hold other parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = ("step", "exp_avg", "exp_avg_sq") if isinstance(optimizer, torch.optim.AdamW) else ("momentum_buffer",)
    for index, state in saved["state"].items():  # torch would fail on it at the next step
        shapes = {name: () if name == "step" else parameters[index].shape for name in names}
        if {name: value.shape for name, value in state.items()} != shapes:
            raise ValueError(f"the state of parameter {index} has other tensors")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
