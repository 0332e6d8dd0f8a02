"""The configuration of a training run: typed, frozen parts. Imports no torch.

In YAML files, in checkpoints and on the command line it is flat: the names of the fields are unique over all parts.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from spatial_ensemble import methods
from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.options import check_types, flag
from spatial_ensemble.smoothing.rule import Smoothing


def _require(part: object, ok: Callable[[Any], bool], what: str, *names: str) -> None:
    """Refuse values of fields that are out of range; None is fine."""
    for name in names:
        value = getattr(part, name)
        if value is not None and not ok(value):
            raise UserError(f"{flag(name)} must be {what}, got {value}")


@dataclass(frozen=True)
class ImagesConfig:
    """The images of a run.

    Args:
        data: digits, cifar10, cifar100, svhn, stl10 or folder.
        path: the folder of the data; none for digits.
        image_size: side in pixels that images are resized to; none keeps their own.
        skip_broken: skip, and count, images that cannot be read; otherwise the first one is an error.
        labels: labelled images in all, the same number of each class; none takes every label.
    """

    data: str
    path: str | None = None
    image_size: int | None = None
    skip_broken: bool = False
    labels: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        _require(self, lambda value: value >= 1, "at least 1", "image_size", "labels")


@dataclass(frozen=True)
class ModelConfig:
    """The backbone.

    Args:
        network: small, wrn-28-2, wrn-28-8, resnet10-small, resnet18-cifar, resnet18, resnet50, vit-mini, vit-tiny, or
            package.module.callable; none chooses by the size of the images.
        init: a .safetensors file written by `export`, from which the student's backbone starts; none: fresh weights.
        batchnorm_momentum: weight of a batch in BatchNorm's running statistics, in [0, 1]; none: the network's own.
    """

    network: str | None = None
    init: str | None = None
    batchnorm_momentum: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        _require(self, lambda value: 0 <= value <= 1, "a number in [0, 1]", "batchnorm_momentum")


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher and its smoothing.

    Args:
        smoothing: sts, se or tma, all from the one momentum and preserve_prob; tma-matched is the tma as fast as sts,
            se-matched the one as fast as se, and every the one as fast as sts that acts at every n-th step alone.
        momentum: m in [0, 1]; 0 replaces, 1 never changes.
        preserve_prob: p in [0, 1]; 0 preserves nothing.
        momentum_schedule: constant; cosine from m to 1 over the run (BYOL's); or warmup, min(m, (1 + k) / (10 + k)).
        unit: which weights share one draw.
        buffers: what the teacher does with floating buffers such as BatchNorm's statistics.
        buffer_momentum: of averaged buffers, in [0, 1]; none: that of the weights.
    """

    smoothing: Literal["sts", "se", "tma", "tma-matched", "se-matched", "every"] = "sts"
    momentum: float = 0.999
    preserve_prob: float = 0.5
    momentum_schedule: Literal["constant", "cosine", "warmup"] = "constant"
    unit: Literal["layer", "tensor", "channel", "element"] = "tensor"
    buffers: Literal["average", "copy", "follow", "keep"] = "average"
    buffer_momentum: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.buffers == "follow" and self.unit != "layer":
            raise UserError(f"--buffers follow needs --unit layer, got --unit {self.unit}")
        if self.buffer_momentum is not None and self.buffers != "average":
            raise UserError(f"--buffer-momentum needs --buffers average, got --buffers {self.buffers}")
        try:
            rule = Smoothing(self.momentum, self.preserve_prob, self.buffer_momentum)
            if self.smoothing == "every":
                rule.every()
        except ValueError as error:
            raise UserError(str(error)) from error


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate.

    Args:
        optimizer: sgd (Nesterov, 0.9), heavyball (the same without Nesterov), lars (trust 0.001), larc (lars with trust
            0.02, clipped), or adamw.
        lr: peak learning rate.
        lr_schedule: constant; cosine to 0; or fixmatch, cos(7 pi k / 16 K).
        warmup_steps: steps over which the learning rate first rises linearly; 0 is off.
        weight_decay: of weights; biases and norms have none.
        clip_grad: maximum norm of all gradients together; none is off.
    """

    optimizer: Literal["sgd", "heavyball", "lars", "larc", "adamw"] = "sgd"
    lr: float = 0.03
    lr_schedule: Literal["constant", "cosine", "fixmatch"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0005
    clip_grad: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        _require(self, lambda value: 0 < value < math.inf, "a positive number", "lr")
        _require(self, lambda value: 0 <= value < math.inf, "0 or more", "weight_decay")
        _require(self, lambda value: value > 0, "a positive number", "clip_grad")


@dataclass(frozen=True)
class RunConfig:
    """Length, seed and hardware of a run.

    Args:
        seed: of everything drawn: label split, initial weights, batches, augmentation, masks.
        steps: optimizer steps in all.
        batch_size: labelled images per step over all devices; where nothing is labelled, the images per step.
        precision: 32-true, or bf16-mixed: networks compute in bfloat16, weights stay in float32.
        device: auto, cpu or cuda.
        eval_every: steps between evaluations of teacher and student; the last step is always evaluated.
        checkpoint_every: steps between checkpoints; the last step is always saved.
    """

    seed: int = 0
    steps: int = 1000
    batch_size: int = 64
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    eval_every: int = 100
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        check_types(self)
        _require(self, lambda value: value >= 0, "at least 0", "seed")
        _require(self, lambda value: value >= 1, "at least 1", "steps", "batch_size", "eval_every", "checkpoint_every")


@dataclass(frozen=True)
class Config:
    """A training run: the same configuration on the same machine gives the same bits.

    The exception is a vision transformer on a GPU: torch's backward passes of attention, and of the interpolation that
    resizes its position embedding, add in no fixed order there. On the command line the defaults are those of the
    recipe, or of a first look at the method and the data: see recipes.py.

    Args:
        method: a file of `spatial_ensemble.methods`, or a dotted path package.module.Class.
        options: of the method, an instance of its `Options`; None: their defaults.

    Raises:
        UserError: an unknown method, or a value that is out of range.

    Example:
        >>> Config("fixmatch", ImagesConfig("digits", labels=20)).replace(steps=10, threshold=0.9).options.threshold
        0.9
    """

    method: str
    images: ImagesConfig
    model: ModelConfig = ModelConfig()
    teacher: TeacherConfig = TeacherConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    options: Any = None

    def __post_init__(self) -> None:
        kind = options_of(self.method)
        if self.options is None:
            object.__setattr__(self, "options", kind())
        if type(self.options) is not kind:
            raise UserError(f"options of {self.method} must be {kind.__module__}.{kind.__qualname__}")
        check_types(self.options)
        steps, warmup = self.run.steps, self.optim.warmup_steps
        if not 0 <= warmup <= steps:
            raise UserError(f"--warmup-steps must be from 0 to --steps ({steps}), got {warmup}")

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> "Config":
        """The inverse of `to_dict`; what is missing has its default.

        Raises:
            UserError: no method or data, an unknown name, or a value of another type or out of range.

        Example:
            >>> Config.from_dict({"method": "byol", "data": "cifar10", "momentum": 0.99}).teacher.momentum
            0.99
        """
        for name in ("method", "data"):
            if not isinstance(flat.get(name), str):
                raise UserError(f"the configuration needs a name as its {name}, got {flat.get(name)!r}")
        method = flat["method"]
        known = [field.name for field in fields(options_of(method))]
        if unknown := sorted(flat.keys() - SETTINGS - {"method", *known}):
            raise UserError(f"{method} has no option {unknown[0]!r}: it has {', '.join(known) or 'none'}")
        parts = {name: _pick(part, flat) for name, part in PARTS.items()}
        return cls(method, **parts, options=_pick(options_of(method), flat))

    def to_dict(self) -> dict[str, Any]:
        """All settings in one flat dictionary."""
        parts = [asdict(getattr(self, name)) for name in (*PARTS, "options")]
        return {"method": self.method} | {name: value for part in parts for name, value in part.items()}

    def to_yaml(self) -> str:
        """The text of config.yaml; `spatial-ensemble train --config` reads it."""
        return str(yaml.safe_dump(self.to_dict(), sort_keys=False))

    def replace(self, **changes: Any) -> "Config":
        """A copy with other values, by the names of the fields of any part; another method starts from its defaults.

        Example:
            >>> Config("fixmatch", ImagesConfig("digits")).replace(momentum=0.9, steps=10).run.steps
            10
        """
        flat = self.to_dict()
        if options_of(changes.get("method", self.method)) is not type(self.options):
            flat = {name: flat[name] for name in SETTINGS}
        return Config.from_dict(flat | changes)

    def differences(
        self, saved: Mapping[str, Any], may_change: Collection[str] = ()
    ) -> dict[str, tuple[object, object]]:
        """Settings that differ from a saved configuration, as name: (saved, now), except those that may change.

        `saved` is as `to_dict` gave it, perhaps in an earlier version: what it lacks has its default.

        Example:
            >>> config = Config("fixmatch", ImagesConfig("digits"))
            >>> config.differences({"method": "fixmatch", "data": "digits", "lr": 0.1, "seed": 1}, may_change={"seed"})
            {'lr': (0.1, 0.03)}
        """
        if saved.get("method") != self.method:  # perhaps one that is not known here
            return {"method": (saved.get("method"), self.method)}
        before, now = Config.from_dict(saved).to_dict(), self.to_dict()
        names = [name for name in sorted(now) if name not in may_change and before[name] != now[name]]
        return {name: (before[name], now[name]) for name in names}


PARTS: dict[str, Any] = {part.name: part.type for part in fields(Config) if is_dataclass(part.type)}
SETTINGS = frozenset(field.name for part in PARTS.values() for field in fields(part))  # those of every run


def options_of(method: str) -> type[Any]:
    """The dataclass of a method's options, none of which may have the name of a setting."""
    kind = methods.options_of(method)
    if taken := sorted((SETTINGS | {"method"}) & {field.name for field in fields(kind)}):
        raise UserError(f"{method} has an option named {taken[0]!r}, which is a setting of every run: rename it")
    return kind


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"the configuration {path} must hold lines of the form name: value")
    return content


def _pick(part: type[Any], flat: Mapping[str, Any]) -> Any:
    return part(**{field.name: flat[field.name] for field in fields(part) if field.name in flat})
