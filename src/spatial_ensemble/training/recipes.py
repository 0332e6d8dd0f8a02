"""Recipes: functions that return a whole configuration, with published hyper-parameters and their source.

What a recipe does not name has the default of its field.
Smoothing is STS over the momentum that each method is published with: p is the paper's for FixMatch and MoCo (0.5) and
BYOL (0.7), and 0.5 for Mean Teacher and DINO, which it does not have; `--smoothing tma` gives the published average.
"""

import inspect
from collections.abc import Callable
from typing import Any

from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.options.dino import DINOOptions
from spatial_ensemble.methods.options.fixmatch import FixMatchOptions
from spatial_ensemble.methods.options.moco import MoCoOptions
from spatial_ensemble.training.config import Config, ImagesConfig, ModelConfig, OptimConfig, RunConfig, TeacherConfig

CIFAR, IMAGENET = 50_000, 1_281_167  # training images


def fixmatch_digits() -> Config:
    """FixMatch on scikit-learn's 8x8 digits with 20 labels, half a minute on one core.

    For short runs: AdamW, a lower threshold and a shorter memory than FixMatch has on CIFAR-10, chosen for all
    smoothings together (benchmarks/results/compare_digits.md).
    """
    return Config(
        "fixmatch",
        ImagesConfig("digits", labels=20),
        ModelConfig("small"),
        TeacherConfig(momentum=0.95),
        OptimConfig("adamw", lr=0.005, lr_schedule="fixmatch"),
        RunConfig(steps=1600, batch_size=10, checkpoint_every=400),
        FixMatchOptions(threshold=0.8),
    )


def fixmatch_cifar10() -> Config:
    """FixMatch on CIFAR-10 with 40 labels, WRN-28-2, 2^20 steps (google-research/fixmatch; labels from the teacher)."""
    return Config(
        "fixmatch",
        ImagesConfig("cifar10", labels=40),
        ModelConfig("wrn-28-2"),
        TeacherConfig(momentum=0.999, preserve_prob=0.5),
        OptimConfig("sgd", lr=0.03, lr_schedule="fixmatch", weight_decay=0.0005),
        RunConfig(steps=2**20, batch_size=64, eval_every=1024, checkpoint_every=4096),
    )


def fixmatch_cifar100() -> Config:
    """FixMatch on CIFAR-100 with 2500 labels, WRN-28-8, 2^20 steps (google-research/fixmatch)."""
    return fixmatch_cifar10().replace(data="cifar100", network="wrn-28-8", labels=2500, weight_decay=0.001)


def mean_teacher_cifar10() -> Config:
    """Mean Teacher on CIFAR-10 with 4000 labels, WRN-28-2 (TorchSSL's meanteacher: weight 50, ramp over 0.4 of the
    steps; its ramp is linear, here it is the paper's)."""
    return fixmatch_cifar10().replace(method="mean_teacher", labels=4000, ramp_up_steps=int(0.4 * 2**20))


def byol_cifar10(epochs: int = 1000) -> Config:
    """BYOL on CIFAR-10, ResNet-18 with the CIFAR stem (solo-learn: LARS, batch 256, lr 1.0, m 0.99 -> 1)."""
    return Config(
        "byol",
        ImagesConfig("cifar10"),
        ModelConfig("resnet18-cifar"),
        TeacherConfig(momentum=0.99, preserve_prob=0.7, momentum_schedule="cosine"),
        OptimConfig("larc", lr=1.0, warmup_steps=10 * CIFAR // 256, weight_decay=0.00001),
        _epochs(epochs, CIFAR, 256, warmup=10, evaluate=10),
    )


def moco_cifar10(epochs: int = 200) -> Config:
    """MoCo v2 on CIFAR-10, ResNet-18 with the CIFAR stem (MoCo's CIFAR notebook: batch 512, lr 0.06, m 0.99, T 0.1).

    Unlike there, queries are normalised over the batch and not in groups, as keys are.
    """
    return Config(
        "moco",
        ImagesConfig("cifar10"),
        ModelConfig("resnet18-cifar"),
        TeacherConfig(momentum=0.99, preserve_prob=0.5),
        OptimConfig("heavyball", lr=0.06, weight_decay=0.0005),
        _epochs(epochs, CIFAR, 512, evaluate=5),
        MoCoOptions(temperature=0.1),
    )


def dino_cifar10(epochs: int = 300) -> Config:
    """DINO on CIFAR-10, a small ViT (facebookresearch/dino's AdamW, temperatures of its longer runs, m for batch 256).

    Unlike there: 4096 outputs for 65536, 6 local crops for 8, a weight decay of 0.04 throughout where it rises to 0.4,
    a learning rate that falls to 0 where it stops at 1e-6, no drop path, and the gradients clipped to a norm of 3 all
    together, where each tensor's are.
    """
    per_epoch = CIFAR // 256
    return Config(
        "dino",
        ImagesConfig("cifar10"),
        ModelConfig("vit-tiny"),
        TeacherConfig(momentum=0.9995, preserve_prob=0.5, momentum_schedule="cosine"),
        OptimConfig("adamw", lr=0.0005, warmup_steps=10 * CIFAR // 256, weight_decay=0.04, clip_grad=3.0),
        _epochs(epochs, CIFAR, 256, warmup=10, evaluate=10),
        DINOOptions(
            teacher_temperature=0.07, temperature_warmup_steps=30 * per_epoch, freeze_last_layer_steps=per_epoch
        ),
    )


def byol_imagenet(epochs: int = 200) -> Config:
    """BYOL on ImageNet, ResNet-50, in the paper's small batches (100, 200, 300 or 1000 epochs: SGD, 0.05, p 0.7)."""
    return Config(
        "byol",
        ImagesConfig("folder", image_size=224),
        ModelConfig("resnet50"),
        TeacherConfig(momentum=0.99, preserve_prob=0.7, momentum_schedule="cosine"),
        OptimConfig("heavyball", lr=0.05, warmup_steps=10 * IMAGENET // 256, weight_decay=0.0001),
        _epochs(epochs, IMAGENET, 256, warmup=10, evaluate=25),
    )


def moco_imagenet(epochs: int = 200) -> Config:
    """MoCo v2 on ImageNet, ResNet-50 (facebookresearch/moco: batch 256, lr 0.03, queue 65536, T 0.2; p 0.5).

    Biases and norms have no weight decay, as everywhere here; there they have.
    """
    return Config(
        "moco",
        ImagesConfig("folder", image_size=224),
        ModelConfig("resnet50"),
        TeacherConfig(momentum=0.999, preserve_prob=0.5),
        OptimConfig("heavyball", lr=0.03, weight_decay=0.0001),
        _epochs(epochs, IMAGENET, 256, evaluate=25),
        MoCoOptions(queue_size=65536),
    )


def linear_imagenet(epochs: int = 80) -> Config:
    """The paper's linear evaluation on ImageNet of an `export` (--init FILE): Linear + BatchNorm1d, lr 0.2."""
    return Config(
        "linear",
        ImagesConfig("folder", image_size=224),
        ModelConfig("resnet50"),
        TeacherConfig("tma", momentum=0.999),
        OptimConfig("heavyball", lr=0.2, weight_decay=0.0),
        _epochs(epochs, IMAGENET, 256, evaluate=5),
    )


def _epochs(epochs: int, images: int, batch_size: int, *, warmup: int = 0, evaluate: int) -> RunConfig:
    """The length of a run that is given in epochs."""
    if epochs <= warmup:
        raise UserError(f"--epochs must be more than the {warmup} of the warm-up, got {epochs}")
    return RunConfig(
        steps=epochs * images // batch_size,
        batch_size=batch_size,
        eval_every=evaluate * images // batch_size,
        checkpoint_every=images // batch_size,
    )


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
    """The configuration of one of RECIPES; epochs for those that are given in epochs, None: as published.

    Raises:
        UserError: an unknown name, or epochs for a recipe that counts steps.

    Example:
        >>> get("byol_imagenet", epochs=300).run.steps
        1501367
    """
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} is not known: use one of {', '.join(RECIPES)}")
    if epochs is None:
        return RECIPES[name]()
    if "epochs" not in inspect.signature(RECIPES[name]).parameters:
        raise UserError(f"--epochs {epochs}: the recipe {name} is given in steps, use --steps")
    return RECIPES[name](epochs)


# What differs from `_SHORT`, by method.
_OWN: dict[str, dict[str, Any]] = {
    "mean_teacher": {"ramp_up_steps": 400},
    "byol": {"momentum": 0.97, "preserve_prob": 0.7, "optimizer": "sgd", "lr": 0.1, "hidden_dim": 1024},
    "moco": {"batch_size": 128, "lr": 0.002, "weight_decay": 0.0001, "temperature": 0.1},
    "dino": {
        "momentum": 0.97,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 0.0001,
        "clip_grad": 3.0,
        "out_dim": 256,
        "hidden_dim": 1024,
        "head_batchnorm": True,
        "local_crops": 0,  # they would take most of the time of a short run
    },
}
_SHORT: dict[str, Any] = {
    "batchnorm_momentum": 0.1,
    "momentum_schedule": "warmup",
    "lr_schedule": "fixmatch",
    "batch_size": 16,
    "eval_every": 500,
    "checkpoint_every": 500,
}
_SELF_SUPERVISED = {"momentum": 0.99, "momentum_schedule": "constant", "batch_size": 64, "lr_schedule": "cosine"}


def default(method: str, data: str) -> Config:
    """The configuration that the command line starts from without a recipe.

    Apart from FixMatch on digits they are for a first look on a few CPU cores, some minutes for some hundred steps:
    small batches, a teacher that is quick enough for a short run and, where nothing is labelled, a small network.
    benchmarks/learning.py shows what they learn. What is published, and takes hours of a GPU, is in the recipes.

    A self-supervised teacher has its full momentum from the first step: MoCo's queue holds the keys of 32 steps, which
    should come from nearly the same teacher (He et al. 2020, section 3.2).
    """
    if (method, data) == ("fixmatch", "digits"):
        return fixmatch_digits()
    changes = _SHORT
    if method in ("byol", "moco", "dino"):
        network = None if data == "digits" else "resnet10-small"
        changes = changes | _SELF_SUPERVISED | {"optimizer": "adamw", "network": network}
    return Config.from_dict({"method": method, "data": data} | changes | _OWN.get(method, {}))
