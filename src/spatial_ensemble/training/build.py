"""Method and teacher, built from a configuration or restored from a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from spatial_ensemble import methods, networks
from spatial_ensemble.data.images import ImageData
from spatial_ensemble.errors import UserError
from spatial_ensemble.methods import Method
from spatial_ensemble.seeding import derive_seed
from spatial_ensemble.smoothing import Schedule, Smoothing, Teacher, cosine, warmup
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.config import Config


def build_method(config: Config, data: dict[str, Any]) -> Method:
    """The method with new weights, a function of the seed, for a configuration that names its network.

    Its shape depends on the channels, the size and the classes of the data, as `describe` returns them.
    """
    kind = methods.get(config.method)
    if kind.labelled_views and not data["classes"]:
        raise UserError(f"{config.method} learns from labels, and no image has one: put some into train/<class>/")
    assert config.model.network is not None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.run.seed, "weights"))
        backbone = networks.build(config.model.network, channels=data["channels"], size=data["size"])
        try:
            method = kind(backbone, len(data["classes"]), config.options)
        except ValueError as error:
            raise UserError(f"{config.method}: {error}") from error
    if config.model.batchnorm_momentum is not None:
        for module in method.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = config.model.batchnorm_momentum
    return method


def load_backbone(method: Method, path: Path) -> None:
    """Initialise the student's backbone with exported weights."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UserError(f"--init {path} is not a safetensors file ({error}): give one that export wrote") from error
    prefix = "backbone."
    weights = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    with explained(f"--init {path} holds another backbone"):
        method.student.get_submodule("backbone").load_state_dict(weights)


def build_teacher(config: Config, method: Method) -> Teacher:
    """The teacher of the method's student, a copy of it."""
    rule, update_every = _rule(config)
    seed = derive_seed(config.run.seed, "teacher")
    unit, buffers = config.teacher.unit, config.teacher.buffers
    return Teacher(method.student, rule, unit=unit, buffers=buffers, seed=seed, update_every=update_every)


def build_smoothing(config: Config) -> Smoothing:
    """The rule of a configuration: all smoothings come from the same momentum and preserve_prob.

    Example:
        >>> from spatial_ensemble.training.recipes import default
        >>> config = default("byol", "digits").replace(momentum=0.99, preserve_prob=0.5)
        >>> build_smoothing(config.replace(smoothing="tma-matched"))
        Smoothing(momentum=0.995, preserve_prob=0.0, buffer_momentum=0.99)
    """
    return _rule(config)[0]


def _rule(config: Config) -> tuple[Smoothing, int]:
    """The rule, and every how many steps the teacher is updated by it."""
    teacher, smoothing = config.teacher, config.teacher.smoothing
    momentum: float | Schedule = teacher.momentum
    if smoothing in ("se", "se-matched"):
        momentum = 0.0
    elif teacher.momentum_schedule == "cosine":
        momentum = cosine(teacher.momentum, 1.0, config.run.steps)
    elif teacher.momentum_schedule == "warmup":
        momentum = warmup(teacher.momentum)
    rule = Smoothing(momentum, 0.0 if smoothing == "tma" else teacher.preserve_prob, teacher.buffer_momentum)
    if smoothing == "every":
        every, rule = rule.every()
        return rule, every
    return rule.matched() if smoothing.endswith("-matched") else rule, 1


def describe(data: ImageData) -> dict[str, Any]:
    """What a checkpoint keeps of its data: enough to rebuild the network, to normalise, and to detect other images."""
    return {
        "name": data.name,
        "classes": list(data.classes),
        "channels": data.channels,
        "size": data.size,
        "mean": list(data.mean),
        "std": list(data.std),
        "digest": data.digest,
    }


def restore(path: Path) -> tuple[dict[str, Any], Config, Method, Teacher]:
    """The content of a checkpoint, and the configuration, the method and the teacher that it holds."""
    content = checkpoint.load(path)
    config = Config.from_dict(content["config"])
    with explained(f"checkpoint {path} holds no such network as its configuration"):
        method = build_method(config, content["data"])
        teacher = build_teacher(config, method)
    load_weights(content, path, method, teacher)
    return content, config, method, teacher


def load_weights(content: dict[str, Any], path: Path, method: Method, teacher: Teacher) -> None:
    """Load the weights of method and teacher from the content of a checkpoint."""
    with explained(f"checkpoint {path} holds the weights of another network"):
        expected = content["step"], teacher.skipped, teacher.seed
        method.load_state_dict(content["method"])
        teacher.load_state_dict(content["teacher"])
        found = teacher.step, teacher.skipped, teacher.seed
        if repr(found) != repr(expected):  # of another type is wrong too
            raise ValueError(f"its teacher has the step, the skipped steps and the seed {found}, expected {expected}")


@contextmanager
def explained(problem: str) -> Iterator[None]:
    """Report whatever is raised inside in one line: on a file that does not fit, torch raises nearly anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{problem}: {' '.join(str(error).split())[:200]}") from error
