"""Where a run computes: its device, and its processes, this one alone or those that torchrun started."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from spatial_ensemble.errors import UserError
from spatial_ensemble.training.config import RunConfig

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Found = TypeVar("Found")


def choose_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda"; the last is an error without a CUDA device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def count() -> int:
    """The number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launch(run: RunConfig) -> "Fabric":
    """Lightning's Fabric for these processes."""
    from lightning.fabric import Fabric

    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator=choose_device(run.device).type,
        strategy="ddp" if count() > 1 else "auto",
        devices=local,
        num_nodes=count() // local,
        precision=run.precision,
    )
    fabric.launch()
    return fabric


def first_alone(fabric: "Fabric", work: Callable[[], Found]) -> Found:
    """The result of `work` in every process; the first one of each machine works alone, so that only it downloads.

    What `work` raises in one process is raised in all; with Fabric's `rank_zero_first` the others would wait forever.
    """
    # A download may take longer than the default timeout of half an hour.
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=10))
    assert isinstance(patient, dist.ProcessGroup)
    results, mistake = [], None
    for first in (True, False):
        if first == (fabric.local_rank == 0):
            try:
                results.append(work())
            except Exception as error:
                mistake = error
        messages: list[str | None] = [None] * fabric.world_size
        dist.all_gather_object(messages, None if mistake is None else str(mistake), group=patient)
        if mistake is not None:
            raise mistake
        if elsewhere := [message for message in messages if message is not None]:
            raise UserError(elsewhere[0])
    dist.destroy_process_group(patient)
    return results[0]
