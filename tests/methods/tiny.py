"""Every method, small: the cases that the contract is held against, and batches to feed them."""

from typing import Any

import torch
from torch import Tensor

from spatial_ensemble import Teacher, networks, temporal_moving_average
from spatial_ensemble.data.batch import Batch
from spatial_ensemble.methods import Method, get
from spatial_ensemble.seeding import generator

CLASSES, CHANNELS, SIZE, LABELLED = 5, 3, 8, 4

SMALL_DINO = {"hidden_dim": 32, "bottleneck_dim": 16, "out_dim": 24}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fixmatch": ("fixmatch", {"threshold": 0.25, "unlabelled_ratio": 3}),
    "fixmatch student": ("fixmatch", {"threshold": 0.25, "unlabelled_ratio": 3, "labels_from": "student"}),
    "fixmatch apart, batch": ("fixmatch", {"threshold": 0.25, "labelled_apart": True, "teacher_norm": "batch"}),
    "mean_teacher": ("mean_teacher", {"ramp_up_steps": 5, "unlabelled_ratio": 3, "teacher_norm": "running"}),
    "mean_teacher batch": ("mean_teacher", {"ramp_up_steps": 5}),
    "byol": ("byol", {"hidden_dim": 32, "projection_dim": 16, "teacher_norm": "running"}),
    "byol batch": ("byol", {"hidden_dim": 32, "projection_dim": 16, "teacher_norm": "batch"}),
    "moco": ("moco", {"queue_size": 16, "dim": 16, "teacher_norm": "running"}),
    "moco symmetric": ("moco", {"queue_size": 16, "dim": 16, "symmetric": True, "teacher_norm": "running"}),
    "moco batch": ("moco", {"queue_size": 16, "dim": 16, "teacher_norm": "batch", "shuffle_groups": 2}),
    "linear": ("linear", {}),
    "linear without norm": ("linear", {"norm": False}),
    "dino": (
        "dino",
        {**SMALL_DINO, "local_crops": 3, "temperature_warmup_steps": 4, "teacher_norm": "running"},
    ),
    "dino batch": ("dino", {**SMALL_DINO, "local_crops": 3, "teacher_norm": "batch"}),
    "dino with BatchNorm in its head": (
        "dino",
        {**SMALL_DINO, "local_crops": 3, "head_batchnorm": True, "teacher_norm": "running"},
    ),
    "dino without local crops": ("dino", {**SMALL_DINO, "local_crops": 0, "teacher_norm": "running"}),
}


def build(case: str, seed: int = 0) -> tuple[Method, Teacher]:
    """A method and its teacher, which has moved away from the student."""
    name, options = CASES[case]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = get(name)
        method = kind(networks.build("small", channels=CHANNELS, size=SIZE), CLASSES, kind.Options(**options))
        teacher = Teacher(method.student, temporal_moving_average(0.9))
        for tensor in teacher.module.parameters():
            tensor.add_(0.02 * torch.randn_like(tensor))
    return method, teacher


def make_batch(method: Method, step: int = 0, seed: int = 0) -> Batch:
    draw = generator(seed, "batch", step)
    unlabelled = LABELLED * method.unlabelled_ratio

    def view(name: str, count: int) -> Tensor:
        size = SIZE // 2 if name == "dino_local" else SIZE
        return torch.randn(count, CHANNELS, size, size, generator=draw)

    return Batch(
        step,
        tuple(view(name, LABELLED) for name in method.labelled_views),
        torch.randint(CLASSES, (LABELLED if method.labelled_views else 0,), generator=draw),
        tuple(view(name, unlabelled) for name in method.unlabelled_views),
    )


def tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}
