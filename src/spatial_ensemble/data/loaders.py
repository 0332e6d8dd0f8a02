"""Batches as a pure function of (seed, step)."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.data.images import Images, channel_tensor, normalise
from spatial_ensemble.data.sampling import Order, Picks
from spatial_ensemble.data.sources.decode import cores
from spatial_ensemble.data.sources.streaming import Stream
from spatial_ensemble.data.views import View
from spatial_ensemble.errors import UserError
from spatial_ensemble.seeding import generator


class Batches:
    """The batch of any step, a pure function of (seed, step).

    Images in memory are moved to the device once. Those that stay in their files are decoded ahead by worker processes
    while steps are requested in order; any other step gives the same batch, but has to wait for it.

    Labelled and unlabelled images are each shown in permutations, one per epoch; the labelled ones are among the
    unlabelled too. A batch depends neither on the steps before it nor on the number of ranks: each takes its slice.

    Args:
        data: the training images.
        labelled: int64, indices of the images whose labels may be used.
        labelled_views: views of each labelled image; empty: no labelled images in the batch.
        unlabelled_views: views of each image, whatever its label; empty: no unlabelled images in the batch.
        batch_size: labelled images per step, over all ranks.
        unlabelled_batch_size: unlabelled images per step, over all ranks.
        mean, std: per channel, in units of the full range.
        seed: of the order and of the augmentation.
        device: where images are augmented and returned, and stored if they are in memory.
        rank, world_size: this process, and the number that share the batch.
        workers: processes that decode images from their files; None: the cores, divided among the ranks.

    Raises:
        UserError: no image to show, or a batch size that is not a positive multiple of `world_size`.

    Example:
        >>> from spatial_ensemble.data.views import view
        >>> data = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> batches = Batches(data, torch.tensor([0, 1]), labelled_views=[view("weak", size=8, flip=True)],
        ...                   unlabelled_views=[], batch_size=2, unlabelled_batch_size=2, mean=[0.5], std=[0.5], seed=0)
        >>> batches(0).labels.sort().values
        tensor([0, 1])
    """

    def __init__(
        self,
        data: Images,
        labelled: Tensor,
        *,
        labelled_views: Sequence[View],
        unlabelled_views: Sequence[View],
        batch_size: int,
        unlabelled_batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
    ) -> None:
        for size in (batch_size, unlabelled_batch_size):
            if size <= 0 or size % world_size:
                raise UserError(f"a batch of {size} images cannot be shared out evenly over {world_size} process(es)")
        if labelled_views and not len(labelled):
            raise UserError("no labelled image to train on: this method needs labels")
        self.labelled_views, self.unlabelled_views = tuple(labelled_views), tuple(unlabelled_views)
        self.seed, self.device, self.world_size = seed, torch.device(device), world_size
        self.labels = data.labels.to(self.device)
        self.mean, self.std = channel_tensor(mean, self.device), channel_tensor(std, self.device)
        self._picks = Picks(
            Order(labelled.cpu(), seed, "labelled"),
            Order(torch.arange(len(data)), seed, "unlabelled"),
            (batch_size if labelled_views else 0, unlabelled_batch_size if unlabelled_views else 0),
            rank,
            world_size,
        )
        self._images: Tensor | Stream
        if isinstance(data.images, Tensor):
            self._images = data.images.to(self.device)
        else:
            on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # set by torchrun
            each = max(1, cores() // on_this_machine) if workers is None else workers
            self._images = Stream(data.images, self._picks, each, pin=self.device.type == "cuda")

    def __call__(self, step: int) -> Batch:
        """The batch of one step, counted from 0: float32 views [B / world_size, C, H, W] on the device."""
        picks = [*self._picks(step)]
        if self.device.type == "cuda":  # from pinned memory the copy is asynchronous
            picks = [index.pin_memory().to(self.device, non_blocking=True) for index in picks]
        if isinstance(self._images, Stream):
            labelled, unlabelled = (images.to(self.device, non_blocking=True) for images in self._images(step))
        else:
            labelled, unlabelled = (self._images[index] for index in picks)
        return Batch(
            step,
            self._show(labelled, self.labelled_views, step, "labelled view"),
            self.labels[picks[0]],
            self._show(unlabelled, self.unlabelled_views, step, "unlabelled view"),
        )

    def _show(self, images: Tensor, views: Sequence[View], step: int, what: str) -> tuple[Tensor, ...]:
        """The views of this rank's images, normalised."""
        shown = []
        for number, view in enumerate(views):
            # Drawn for the images of all ranks, so that an image is augmented alike on any number of ranks.
            draws = view.draw(len(images) * self.world_size, generator(self.seed, what, number, step))
            shown.append(normalise(view.apply(images, self._picks.own(draws)), self.mean, self.std))
        return tuple(shown)
