"""From a configuration to everything that a run needs, built once and checked before it trains."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spatial_ensemble import methods, networks
from spatial_ensemble.data import sources
from spatial_ensemble.data.images import ImageData
from spatial_ensemble.data.loaders import Batches
from spatial_ensemble.data.splits import balanced_indices
from spatial_ensemble.data.views import View, view
from spatial_ensemble.errors import UserError
from spatial_ensemble.evaluation.predict import predict
from spatial_ensemble.methods import Method
from spatial_ensemble.seeding import generator
from spatial_ensemble.smoothing.teacher import Teacher
from spatial_ensemble.training.build import build_method, build_teacher, describe, explained, load_backbone
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.processes import choose_device


@dataclass(frozen=True)
class Prepared:
    """The parts of a run. `config` is complete: its network has a name."""

    config: Config
    data: ImageData
    method: Method
    teacher: Teacher
    batches: Batches


def check(config: Config) -> dict[str, Any]:
    """Raise what `train` would about the configuration or its data; return what a checkpoint keeps of the data."""
    choose_device(config.run.device)
    return describe(prepare(config).data)


def check_names(config: Config, *, resumed: bool = False) -> None:
    """Check names, paths and whether the method takes labels, before anything that takes longer."""
    images, network, init = config.images, config.model.network, config.model.init
    if images.labels is not None and not methods.get(config.method).labelled_views:
        raise UserError(f"{config.method} learns without labels: leave out --labels")
    sources.check(images.data, images.path, image_size=images.image_size)
    if network is not None:
        networks.get(network)
    if init is not None and not resumed and not Path(init).is_file():
        raise UserError(f"--init {init} does not exist: give the .safetensors file that export wrote")


def load_data(config: Config, *, resumed: bool = False) -> tuple[Config, ImageData]:
    """The configuration with its network named, and its data set."""
    check_names(config, resumed=resumed)
    images, network = config.images, config.model.network
    data = sources.load(images.data, images.path, image_size=images.image_size, skip_broken=images.skip_broken)
    return config.replace(network=network or networks.default_network(data.size)), data


def prepare(
    config: Config,
    data: ImageData | None = None,
    *,
    resumed: bool = False,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Prepared:
    """Build the data, the method, its teacher and its batches, and check that they fit together.

    Args:
        config: the run.
        data: with a configuration that names its network, as `load_data` returns both; None: load them.
        resumed: leave out --init, since the weights come from a checkpoint.
        device: for the networks and the batches; None: the CPU.
        rank, world_size: this process, and how many share a batch.
    """
    if data is None:
        config, data = load_data(config, resumed=resumed)
    device = device or torch.device("cpu")
    method = build_method(config, describe(data))
    if config.model.init is not None and not resumed:
        load_backbone(method, Path(config.model.init))
    elif method.needs_init and not resumed:
        raise UserError(f"{config.method} needs pretrained weights: pass --init FILE, a .safetensors file from export")
    labelled = balanced_indices(data.train.labels, config.images.labels, data.classes, config.run.seed)
    method.check(
        batch_size=config.run.batch_size,
        processes=world_size,
        num_classes=len(data.classes),
        labelled=len(labelled),
        size=data.size,
    )
    names = (*method.labelled_views, *method.unlabelled_views)
    views = {name: view(name, size=data.size, flip=data.flip) for name in names}
    for name, random_view in views.items():
        _try(config, method, data, name, random_view)
    batches = Batches(
        data.train,
        labelled,
        labelled_views=[views[name] for name in method.labelled_views],
        unlabelled_views=[views[name] for name in method.unlabelled_views],
        batch_size=config.run.batch_size,
        unlabelled_batch_size=config.run.batch_size * method.unlabelled_ratio,
        mean=data.mean,
        std=data.std,
        seed=config.run.seed,
        device=device,
        rank=rank,
        world_size=world_size,
    )
    if world_size > 1 and device.type == "cuda":  # torch has synchronised BatchNorm for GPUs only
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
    method.to(device)
    return Prepared(config, data, method, build_teacher(config, method), batches)


def _try(config: Config, method: Method, data: ImageData, name: str, random_view: View) -> None:
    """Check that a view is no larger than the images, and that the backbone takes images of its size."""
    image = torch.zeros(1, data.channels, data.size, data.size, dtype=torch.uint8)
    example = random_view(image, generator(0, "example"))
    size = f"{example.shape[-2]} x {example.shape[-1]}"
    if max(example.shape[-2:]) > data.size:
        raise UserError(
            f"the view {name!r} has {size} pixels, the images have {data.size} x {data.size}: use larger images, or an "
            "option that leaves this view out"
        )
    with explained(f"the network {config.model.network} does not take the {size} pixels of the view {name!r}"):
        predict(method.student.get_submodule("backbone"), example, data.mean, data.std)
