"""The processes of a run: this one alone, or those that torchrun started."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist

from spatial_ensemble.errors import UserError
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.evaluate import choose_device

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Found = TypeVar("Found")


def count() -> int:
    """How many torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launch(config: Config) -> "Fabric":
    """Lightning's Fabric for them."""
    from lightning.fabric import Fabric

    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator=choose_device(config.run.device).type,
        strategy="ddp" if count() > 1 else "auto",
        devices=local,
        num_nodes=count() // local,
        precision=config.run.precision,
    )
    fabric.launch()
    return fabric


def first_alone(fabric: "Fabric", work: Callable[[], Found]) -> Found:
    """The result of `work` in every process; on each machine the first one does it alone, so that only it downloads.

    Raises:
        Exception: what `work` raised here.
        UserError: what it raised in another process, for which this one would wait in vain.
    """
    # Others wait as long as a download takes, which is more than the usual half hour.
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=10))
    assert isinstance(patient, dist.ProcessGroup)
    results, mistake = [], None
    for first in (True, False):
        if first == (fabric.local_rank == 0):
            try:
                results.append(work())
            except Exception as error:
                mistake = error
        told: list[str | None] = [None] * fabric.world_size
        dist.all_gather_object(told, None if mistake is None else str(mistake), group=patient)
        if mistake is not None:
            raise mistake
        if elsewhere := [message for message in told if message is not None]:
            raise UserError(elsewhere[0])
    dist.destroy_process_group(patient)
    return results[0]
