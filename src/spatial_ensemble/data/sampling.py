"""Which images are shown at which step, as a pure function of the seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spatial_ensemble.seeding import generator


class Order:
    """An endless sequence of permutations of `indices`: each image once per epoch, drawn from (seed, what, epoch)."""

    def __init__(self, indices: Tensor, seed: int, what: str) -> None:
        self.indices, self.seed, self.what = indices, seed, what
        self._latest = (-1, indices)

    def batch(self, step: int, size: int) -> Tensor:
        """The images of one step, int64 [size]."""
        if not size:
            return self.indices[:0]
        number, start, stop = len(self.indices), step * size, (step + 1) * size
        first, last = start // number, (stop - 1) // number
        shown = torch.cat([self._epoch(epoch) for epoch in range(first, last + 1)])
        return shown[start - first * number : stop - first * number]

    def _epoch(self, epoch: int) -> Tensor:
        if self._latest[0] != epoch:
            order = torch.randperm(len(self.indices), generator=generator(self.seed, self.what, epoch))
            self._latest = (epoch, self.indices[order])
        return self._latest[1]


@dataclass(frozen=True)
class Picks:
    """The images that a rank sees at a step: its rows of the global batch of `sizes` labelled and unlabelled images."""

    labelled: Order
    unlabelled: Order
    sizes: tuple[int, int]
    rank: int
    world_size: int

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """The labelled and the unlabelled images, int64 [sizes / world_size]."""
        labelled, unlabelled = self.sizes
        return self.own(self.labelled.batch(step, labelled)), self.own(self.unlabelled.batch(step, unlabelled))

    def own(self, whole: Tensor) -> Tensor:
        """This rank's rows."""
        each = len(whole) // self.world_size
        return whole[self.rank * each : (self.rank + 1) * each]
