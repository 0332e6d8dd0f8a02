"""Recipes: functions that return a whole configuration, with published hyper-parameters and where they come from.

Smoothing is STS over the momentum that each method is published with: p is the paper's for FixMatch and MoCo (0.5) and
BYOL (0.7), and 0.5 for Mean Teacher and DINO, which it does not have; `--smoothing tma` gives the published average.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from spatial_ensemble.errors import UserError
from spatial_ensemble.training.config import Config

CIFAR, IMAGENET = 50_000, 1_281_167  # training images


def fixmatch_digits() -> Config:
    """FixMatch on scikit-learn's 8x8 digits with 20 labels, half a minute on one core.

    For short runs: AdamW, a lower threshold and a shorter memory than FixMatch has on CIFAR-10, chosen for all
    smoothings together (benchmarks/results/compare_digits.md).
    """
    return Config(
        method="fixmatch",
        data="digits",
        network="small",
        labels=20,
        momentum=0.95,
        preserve_prob=0.5,
        steps=1600,
        batch_size=10,
        optimizer="adamw",
        lr=0.005,
        lr_schedule="fixmatch",
        eval_every=100,
        checkpoint_every=400,
        options={"threshold": 0.8, "unlabelled_weight": 1.0, "unlabelled_ratio": 7, "labels_from": "teacher"},
    )


def fixmatch_cifar10() -> Config:
    """FixMatch on CIFAR-10 with 40 labels, WRN-28-2, 2^20 steps (google-research/fixmatch; labels from the teacher)."""
    return Config(
        method="fixmatch",
        data="cifar10",
        network="wrn-28-2",
        labels=40,
        momentum=0.999,
        preserve_prob=0.5,
        steps=2**20,
        batch_size=64,
        optimizer="sgd",
        lr=0.03,
        lr_schedule="fixmatch",
        weight_decay=0.0005,
        eval_every=1024,
        checkpoint_every=4096,
        options={"threshold": 0.95, "unlabelled_weight": 1.0, "unlabelled_ratio": 7, "labels_from": "teacher"},
    )


def fixmatch_cifar100() -> Config:
    """FixMatch on CIFAR-100 with 2500 labels, WRN-28-8, 2^20 steps (google-research/fixmatch)."""
    return replace(fixmatch_cifar10(), data="cifar100", network="wrn-28-8", labels=2500, weight_decay=0.001)


def mean_teacher_cifar10() -> Config:
    """Mean Teacher on CIFAR-10 with 4000 labels, WRN-28-2 (TorchSSL's meanteacher: weight 50, ramp over 0.4 of the
    steps; its ramp is a straight line, here it is the paper's)."""
    options = {"ramp_up_steps": int(0.4 * 2**20)}
    return replace(fixmatch_cifar10(), method="mean_teacher", labels=4000, options=options)


def byol_cifar10(epochs: int = 1000) -> Config:
    """BYOL on CIFAR-10, ResNet-18 with the CIFAR stem (solo-learn: LARS, batch 256, lr 1.0, m 0.99 -> 1)."""
    return Config(
        method="byol",
        data="cifar10",
        network="resnet18-cifar",
        momentum=0.99,
        preserve_prob=0.7,
        momentum_schedule="cosine",
        batch_size=256,
        optimizer="larc",
        lr=1.0,
        weight_decay=0.00001,
        **_epochs(epochs, CIFAR, 256, warmup=10, evaluate=10),
        options={"hidden_dim": 4096, "projection_dim": 256, "teacher_norm": "batch"},
    )


def moco_cifar10(epochs: int = 200) -> Config:
    """MoCo v2 on CIFAR-10, ResNet-18 with the CIFAR stem (MoCo's CIFAR notebook: batch 512, lr 0.06, m 0.99, T 0.1).

    Unlike there, queries are normalised over the batch and not in groups, as keys are.
    """
    return Config(
        method="moco",
        data="cifar10",
        network="resnet18-cifar",
        momentum=0.99,
        preserve_prob=0.5,
        batch_size=512,
        optimizer="heavyball",
        lr=0.06,
        weight_decay=0.0005,
        **_epochs(epochs, CIFAR, 512, evaluate=5),
        options={"dim": 128, "queue_size": 4096, "temperature": 0.1, "teacher_norm": "batch", "shuffle_groups": 8},
    )


def dino_cifar10(epochs: int = 300) -> Config:
    """DINO on CIFAR-10, a small ViT (facebookresearch/dino's AdamW, temperatures of its longer runs, m for batch 256).

    Unlike there: 4096 outputs for 65536, 6 local crops for 8, a weight decay of 0.04 throughout where it rises to 0.4,
    a learning rate that falls to 0 where it stops at 1e-6, no drop path, and the gradients clipped to a norm of 3 all
    together, where each tensor's are.
    """
    per_epoch = CIFAR // 256
    return Config(
        method="dino",
        data="cifar10",
        network="vit-tiny",
        momentum=0.9995,
        preserve_prob=0.5,
        momentum_schedule="cosine",
        batch_size=256,
        optimizer="adamw",
        lr=0.0005,
        weight_decay=0.04,
        clip_grad=3.0,
        **_epochs(epochs, CIFAR, 256, warmup=10, evaluate=10),
        options={
            "out_dim": 4096,
            "local_crops": 6,
            "teacher_temperature": 0.07,
            "warmup_teacher_temperature": 0.04,
            "temperature_warmup_steps": 30 * per_epoch,
            "freeze_last_layer_steps": per_epoch,
        },
    )


def byol_imagenet(epochs: int = 200) -> Config:
    """BYOL on ImageNet, ResNet-50, in the paper's small batches (100, 200, 300 or 1000 epochs: SGD, 0.05, p 0.7)."""
    return Config(
        method="byol",
        data="folder",
        image_size=224,
        network="resnet50",
        momentum=0.99,
        preserve_prob=0.7,
        momentum_schedule="cosine",
        batch_size=256,
        optimizer="heavyball",
        lr=0.05,
        weight_decay=0.0001,
        **_epochs(epochs, IMAGENET, 256, warmup=10, evaluate=25),
        options={"hidden_dim": 4096, "projection_dim": 256, "teacher_norm": "batch"},
    )


def moco_imagenet(epochs: int = 200) -> Config:
    """MoCo v2 on ImageNet, ResNet-50 (facebookresearch/moco: batch 256, lr 0.03, queue 65536, T 0.2; p 0.5).

    Biases and norms have no weight decay, as everywhere here; there they have.
    """
    return Config(
        method="moco",
        data="folder",
        image_size=224,
        network="resnet50",
        momentum=0.999,
        preserve_prob=0.5,
        batch_size=256,
        optimizer="heavyball",
        lr=0.03,
        weight_decay=0.0001,
        **_epochs(epochs, IMAGENET, 256, evaluate=25),
        options={"dim": 128, "queue_size": 65536, "temperature": 0.2, "teacher_norm": "batch", "shuffle_groups": 8},
    )


def linear_imagenet(epochs: int = 80) -> Config:
    """The paper's linear evaluation on ImageNet of what `export` wrote (--init FILE): Linear + BatchNorm1d, lr 0.2."""
    return Config(
        method="linear",
        data="folder",
        image_size=224,
        network="resnet50",
        smoothing="tma",
        momentum=0.999,
        batch_size=256,
        optimizer="heavyball",
        lr=0.2,
        weight_decay=0.0,
        **_epochs(epochs, IMAGENET, 256, evaluate=5),
        options={"norm": True},
    )


def _epochs(epochs: int, images: int, batch_size: int, *, warmup: int = 0, evaluate: int) -> Any:
    """The fields of Config that count steps, from epochs."""
    if epochs <= warmup:
        raise UserError(f"--epochs must be more than the {warmup} of the warm-up, got {epochs}")
    steps = {"steps": epochs, "warmup_steps": warmup, "eval_every": evaluate, "checkpoint_every": 1}
    return {name: number * images // batch_size for name, number in steps.items()}


RECIPES: dict[str, Callable[..., Config]] = {
    recipe.__name__: recipe
    for recipe in (
        fixmatch_digits,
        fixmatch_cifar10,
        fixmatch_cifar100,
        mean_teacher_cifar10,
        byol_cifar10,
        moco_cifar10,
        dino_cifar10,
        byol_imagenet,
        moco_imagenet,
        linear_imagenet,
    )
}


def get(name: str, epochs: int | None = None) -> Config:
    """The configuration of a recipe.

    Args:
        name: one of RECIPES.
        epochs: for those recipes that are laid out in epochs; None: as published.

    Raises:
        UserError: an unknown name, or epochs for a recipe that counts steps.

    Example:
        >>> get("byol_imagenet", epochs=300).steps
        1501367
    """
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} is not known: use one of {', '.join(RECIPES)}")
    if epochs is None:
        return RECIPES[name]()
    if "epochs" not in inspect.signature(RECIPES[name]).parameters:
        raise UserError(f"--epochs {epochs}: the recipe {name} is laid out in steps, use --steps")
    return RECIPES[name](epochs)


def default(method: str, data: str) -> Config:
    """The configuration that the command line starts from, where no recipe is asked for.

    All but FixMatch's on digits are for a first look on a few CPU cores, some minutes for some hundred steps: small
    batches, a teacher that is quick enough for a short run and, where nothing is labelled, a small network.
    benchmarks/learning.py shows what they learn. What is published, and wants hours of a GPU, is in the recipes.

    A self-supervised teacher has its whole momentum from the first step on: MoCo's queue holds the keys of 32 steps,
    which are to come from nearly the same teacher (He et al. 2020, section 3.2).
    """
    if (method, data) == ("fixmatch", "digits"):
        return fixmatch_digits()
    short = Config(
        method=method,
        data=data,
        batchnorm_momentum=0.1,
        momentum_schedule="warmup",
        lr_schedule="fixmatch",
        batch_size=16,
        eval_every=500,
        checkpoint_every=500,
    )
    if method == "mean_teacher":
        return replace(short, options={"ramp_up_steps": 400})
    own: dict[str, dict[str, Any]] = {
        "byol": {
            "momentum": 0.97,
            "preserve_prob": 0.7,
            "optimizer": "sgd",
            "lr": 0.1,
            "options": {"hidden_dim": 1024},
        },
        "moco": {
            "batch_size": 128,
            "lr": 0.002,
            "weight_decay": 0.0001,
            "options": {"temperature": 0.1},
        },
        "dino": {
            "momentum": 0.97,
            "optimizer": "sgd",
            "lr": 0.1,
            "weight_decay": 0.0001,
            "clip_grad": 3.0,
            # Two global crops alone: local ones would take most of a short run's time.
            "options": {"out_dim": 256, "hidden_dim": 1024, "head_batchnorm": True, "local_crops": 0},
        },
    }
    if method in own:
        network = None if data == "digits" else "resnet10-small"
        slow: dict[str, Any] = {
            "network": network,
            "momentum": 0.99,
            "momentum_schedule": "constant",
            "batch_size": 64,
        }
        return replace(short, **slow | {"optimizer": "adamw", "lr_schedule": "cosine"} | own[method])
    return short
