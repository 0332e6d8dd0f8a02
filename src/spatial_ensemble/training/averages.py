"""Averages of logged values over steps and processes.

torchmetrics' MeanMetric does not fit: with nan_strategy="disable" it ignores weights, so that no total can be resumed,
and it synchronises only metrics that every rank has.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Totals = dict[str, tuple[Tensor, float]]  # name -> sum of the values, float64 [], and their number


class Averages:
    """Running sums by name, on the device; a name may be missing at some steps or on some ranks.

    They start from the totals of an interrupted run.
    """

    def __init__(self, fabric: "Fabric", begun: Totals) -> None:
        self.fabric = fabric
        self.own = {name: (total.to(fabric.device, torch.float64), count) for name, (total, count) in begun.items()}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of one step of this process, without a host synchronisation."""
        for name, value in values.items():
            total, count = self.own.get(name, (torch.zeros_like(value, dtype=torch.float64), 0))
            self.own[name] = total + value.detach(), count + 1

    def totals(self) -> Totals:
        """Totals averaged over the processes, so that any number of processes can resume from them; a collective."""
        names = list(self.own)
        if self.fabric.world_size > 1:
            gathered: list[list[str]] = [[] for _ in range(self.fabric.world_size)]
            dist.all_gather_object(gathered, names)
            names = list(dict.fromkeys(name for names in gathered for name in names))
        parts = [self.own.get(name, (torch.zeros(()), 0)) for name in names]
        table = torch.tensor([[total.item(), count] for total, count in parts], dtype=torch.float64)
        mean = self.fabric.all_reduce(table.to(self.fabric.device), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return {name: (row[0], row[1].item()) for name, row in zip(names, mean.cpu(), strict=True)}
