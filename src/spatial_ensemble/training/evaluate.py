"""Accuracy of the networks of a run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn

from spatial_ensemble.data.images import ImageData
from spatial_ensemble.data.sources import load
from spatial_ensemble.errors import UserError
from spatial_ensemble.evaluation import accuracy
from spatial_ensemble.training.build import restore
from spatial_ensemble.training.processes import choose_device

Protocol = Literal["accuracy", "knn", "linear", "linear-paper"]
Which = Literal["teacher", "student"]


def measure(student: nn.Module, data: ImageData, protocol: Protocol) -> float:
    """Accuracy in per cent; nan if no image has a label.

    Of the network's own outputs, of nearest neighbours of its backbone's features, or of a linear probe of them: the
    standard one, or the paper's with its BatchNorm1d.
    """
    if not data.classes:
        return math.nan
    if protocol == "accuracy":
        return accuracy(student, data.test, data.mean, data.std)
    backbone = student.get_submodule("backbone")
    if protocol == "knn":
        from spatial_ensemble.evaluation.knn import knn_accuracy

        return knn_accuracy(backbone, data.train, data.test, data.mean, data.std)
    from spatial_ensemble.evaluation.linear import linear_accuracy

    kind: Literal["paper", "standard"] = "paper" if protocol == "linear-paper" else "standard"
    return linear_accuracy(backbone, data.train, data.test, data.mean, data.std, protocol=kind)


def evaluate(
    path: Path,
    name: str | None = None,
    folder: str | None = None,
    *,
    which: Which = "teacher",
    protocol: Protocol | None = None,
    skip_broken: bool = False,
    device: str = "auto",
) -> tuple[float, Protocol]:
    """Accuracy, in per cent, of a network of a checkpoint on the test images of a data set; and its protocol.

    Images are normalised as in its training.

    Args:
        path: the checkpoint.
        name: of the data set; None: that of the training.
        folder: of the data.
        which: the teacher or the student.
        protocol: None: the headline of its method.
        skip_broken: skip broken images.
        device: auto, cpu or cuda.

    Raises:
        UserError: no checkpoint, no classifier, or images or classes that do not fit the network.
    """
    content, config, method, teacher = restore(path)
    known = content["data"]
    other = "use --protocol knn or linear"
    if protocol == "accuracy" and method.headline != "accuracy":
        raise UserError(f"{path} holds a network of {config.method}, which has no classifier: {other}")
    if name is None:
        name, folder = config.images.data, folder or config.images.path
    data = load(name, folder, image_size=known["size"], skip_broken=skip_broken)
    if not data.classes:
        raise UserError(f"no image in {folder} has a label to evaluate with: give --path to images in class folders")
    if data.channels != known["channels"]:
        raise UserError(f"{path} was trained on images of {known['channels']} channel(s), {name} has {data.channels}")
    protocol = protocol or method.headline
    if protocol == "accuracy" and list(data.classes) != known["classes"]:
        both = f"{path} was trained on the classes {_few(known['classes'])}, {name} has {_few(data.classes)}"
        raise UserError(f"{both}: {other}")
    network = (teacher.module if which == "teacher" else method.student).to(choose_device(device))
    return measure(network, replace(data, mean=known["mean"], std=known["std"]), protocol), protocol


def _few(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" ... ({len(names)})" if len(names) > 3 else "")
