"""Everything that decides a training run, in one typed, frozen object that goes to YAML and back."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]

from spatial_ensemble.errors import UserError
from spatial_ensemble.smoothing.rule import Schedule, Smoothing, spatial_ensemble, spatial_temporal_smoothing
from spatial_ensemble.smoothing.rule import temporal_moving_average as tma
from spatial_ensemble.smoothing.schedule import cosine, warmup

SmoothingName = Literal["sts", "se", "tma", "tma-matched"]


@dataclass(frozen=True)
class Config:
    """A training run: the same configuration on the same machine gives the same bits.

    Vision transformers on a GPU are the exception: torch's backward passes of attention and of resizing, by which the
    position embedding is brought to the size of the crops, add in no fixed order there. On the command line the
    defaults are those of the recipe, or of a first look at the method and the data: see recipes.py.

    Args:
        method: a file of `spatial_ensemble.methods`, or a dotted path package.module.Class.
        data: digits, cifar10, cifar100, svhn, stl10 or folder.
        path: the folder of the data; none for digits.
        image_size: side in pixels that images are brought to; none keeps their own.
        skip_broken: leave out, and count, images that cannot be read; otherwise the first one is an error.
        labels: labelled images in all, the same number of each class; none takes every label.
        network: small, wrn-28-2, wrn-28-8, resnet10-small, resnet18-cifar, resnet18, resnet50, vit-mini, vit-tiny, or
            package.module.callable; none chooses by the size of the images.
        init: a .safetensors file that `export` wrote, whose backbone the student starts from; none: fresh weights.
        batchnorm_momentum: how far a batch moves BatchNorm's running statistics, in [0, 1]; none: the network's own.
        smoothing: sts, se or tma, all from the one momentum and preserve_prob; tma-matched is the tma as fast as sts.
        momentum: m in [0, 1]; 0 replaces, 1 never changes.
        preserve_prob: p in [0, 1]; 0 preserves nothing.
        momentum_schedule: constant; cosine from m to 1 over the run (BYOL's); or warmup, min(m, (1 + k) / (10 + k)).
        unit: which weights share one draw.
        buffers: what the teacher does with floating buffers such as BatchNorm's statistics.
        seed: of everything drawn: label split, initial weights, batches, augmentation, masks.
        steps: optimizer steps in all.
        batch_size: labelled images of a step over all devices; where nothing is labelled, the images of a step.
        optimizer: sgd (Nesterov, 0.9), heavyball (the same without Nesterov), lars (trust 0.001), larc (lars with trust
            0.02, clipped), or adamw.
        lr: peak learning rate.
        lr_schedule: constant; cosine to 0; or fixmatch, cos(7 pi k / 16 K).
        warmup_steps: the learning rate first rises in a straight line over this many steps; 0 is off.
        weight_decay: of weights; biases and norms have none.
        clip_grad: greatest norm of all gradients together, longer ones are scaled down to it; none is off.
        precision: 32-true, or bf16-mixed: networks compute in bfloat16, weights stay in float32.
        device: auto, cpu or cuda.
        eval_every: steps between evaluations of teacher and student; the last step is always evaluated.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        options: the method's own keyword arguments.

    Raises:
        UserError: a value out of its range.

    Example:
        >>> Config(method="fixmatch", data="digits", labels=20).momentum
        0.999
    """

    method: str
    data: str
    path: str | None = None
    image_size: int | None = None
    skip_broken: bool = False
    labels: int | None = None
    network: str | None = None
    init: str | None = None
    batchnorm_momentum: float | None = None
    smoothing: SmoothingName = "sts"
    momentum: float = 0.999
    preserve_prob: float = 0.5
    momentum_schedule: Literal["constant", "cosine", "warmup"] = "constant"
    unit: Literal["layer", "tensor", "channel", "element"] = "tensor"
    buffers: Literal["average", "copy", "follow", "keep"] = "average"
    seed: int = 0
    steps: int = 1000
    batch_size: int = 64
    optimizer: Literal["sgd", "heavyball", "lars", "larc", "adamw"] = "sgd"
    lr: float = 0.03
    lr_schedule: Literal["constant", "cosine", "fixmatch"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0005
    clip_grad: float | None = None
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    eval_every: int = 100
    checkpoint_every: int = 1000
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Config).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise UserError(f"{_flag(name)} must be one of {', '.join(get_args(hint))}; got {value!r}")
        for name in ("steps", "batch_size", "eval_every", "checkpoint_every", "labels", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_flag(name)} must be at least 1, got {value}")
        for name, ok, what in (
            ("seed", self.seed >= 0, "at least 0"),
            ("batchnorm_momentum", 0 <= (self.batchnorm_momentum or 0) <= 1, "a number in [0, 1]"),
            ("lr", math.isfinite(self.lr) and self.lr > 0, "a positive number"),
            ("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "0 or more"),
            ("clip_grad", self.clip_grad is None or self.clip_grad > 0, "a positive number"),
            ("warmup_steps", 0 <= self.warmup_steps <= self.steps, f"from 0 to --steps ({self.steps})"),
        ):
            if not ok:
                raise UserError(f"{_flag(name)} must be {what}, got {getattr(self, name)}")
        if taken := sorted(self.options.keys() & {f.name for f in fields(Config)}):
            raise UserError(
                f"options of {self.method} hold {taken[0]!r}, which is a setting of every run: give it beside the "
                "options, or give the method's option another name"
            )
        if self.buffers == "follow" and self.unit != "layer":
            raise UserError(f"--buffers follow needs --unit layer, got --unit {self.unit}")
        build_smoothing(self)

    def to_dict(self) -> dict[str, Any]:
        """One flat dictionary: the method's own options stand beside the others, as they do on the command line."""
        flat: dict[str, Any] = asdict(self)
        options: dict[str, Any] = flat.pop("options")
        return flat | options

    @classmethod
    def from_dict(cls, flat: dict[str, Any]) -> "Config":
        """The inverse of `to_dict`: what is no field of Config is an option of the method."""
        known = {f.name for f in fields(cls)} - {"options"}
        own = {name: value for name, value in flat.items() if name in known}
        return cls(**own, options={name: value for name, value in flat.items() if name not in known})

    def to_yaml(self) -> str:
        """The text of config.yaml; `spatial-ensemble train --config` reads it."""
        return str(yaml.safe_dump(self.to_dict(), sort_keys=False))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"the configuration {path} must hold lines of the form name: value")
    return content


def build_smoothing(config: Config) -> Smoothing:
    """The rule of a configuration: all four smoothings come from the same (momentum, preserve_prob).

    Example:
        >>> build_smoothing(Config("fixmatch", "digits", smoothing="tma-matched", momentum=0.99, preserve_prob=0.5))
        Smoothing(momentum=0.995, preserve_prob=0.0, buffer_momentum=0.99)
    """
    schedules: dict[str, Callable[[float], float | Schedule]] = {
        "constant": lambda m: m,
        "cosine": lambda m: cosine(m, 1.0, config.steps),
        "warmup": lambda m: warmup(m),
    }
    try:
        Smoothing(config.momentum, config.preserve_prob)  # so that a bad number is found before a schedule hides it
        momentum = schedules[config.momentum_schedule](config.momentum)
        both = spatial_temporal_smoothing(momentum, config.preserve_prob)
        return {
            "sts": lambda: both,
            "se": lambda: spatial_ensemble(config.preserve_prob),
            "tma": lambda: tma(momentum),
            "tma-matched": both.matched,
        }[config.smoothing]()
    except ValueError as error:
        raise UserError(str(error)) from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
