"""Images that do not fit in memory: decoded from their files by worker processes when needed."""

import os
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from spatial_ensemble.data.sources.decode import BrokenImageError, broken_message, cores, decode_many
from spatial_ensemble.errors import UserError

Picks = Callable[[int], tuple[Tensor, Tensor]]
FOR_EVER = 2**62


class FileImages:
    """Images that stay in their files; indexed like the uint8 tensor [N, C, S, S] of their pixels.

    A departure from the usual recipe for large photographs, which takes its random crop from the whole image: here each
    image is first brought to a square (short side resized, centre cropped), and the views, random crops among them, are
    made of these squares in batches on the device. So nothing outside the centre square is seen, and small crops are
    softer; a larger `image_size` makes up for the latter.

    A grey image among coloured ones is given three equal channels. With `resize`, images of any size are brought to
    `size`; otherwise another size is an error.
    """

    def __init__(self, files: Sequence[str], channels: int, size: int, *, resize: bool) -> None:
        # One array of bytes, which worker processes share; reference counts of strings would copy their pages.
        self.files = np.array([os.fsencode(file) for file in files])
        self.shape = torch.Size([len(self.files), channels, size, size])
        self.resize = resize

    def __len__(self) -> int:
        return len(self.files)

    def names(self) -> bytes:
        """The class folder and name of each file: unchanged when the whole data set is moved."""
        return b"\0".join(b"/".join(file.rsplit(os.fsencode(os.sep), 2)[-2:]) for file in self.files)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Decode images: uint8 [n, C, S, S]. UserError: one is broken, of another size, or coloured among grey ones."""
        files = [os.fsdecode(file) for file in self.files[index if isinstance(index, slice) else index.numpy()]]
        images = torch.empty(len(files), *self.shape[1:], dtype=torch.uint8)
        threads = 1 if get_worker_info() else cores()
        _, most, size, _ = self.shape
        results = decode_many(files, size if self.resize else None, threads)
        for image, file, pixels in zip(images, files, results, strict=True):
            if isinstance(pixels, BrokenImageError):
                raise UserError(broken_message(file, pixels))
            height, width, channels = pixels.shape
            if height != size or channels > most:
                raise UserError(
                    f"{file} has {width}x{height} pixels and {channels} channel(s), unlike the {size}x{size} and "
                    f"{most} of the others: convert it, or give --image-size for the size"
                )
            image.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
        return images


class Stream:
    """The images of any step, decoded ahead by worker processes while steps are requested in order.

    `picks` gives the indices of a step's labelled and unlabelled images.
    """

    def __init__(self, images: FileImages, picks: Picks, workers: int, *, pin: bool) -> None:
        self.steps, self.workers, self.pin = _Steps(images, picks), workers, pin
        self._next = -1
        self._reader: list[Iterator[tuple[Tensor, Tensor] | UserError]] = []
        # Workers end at once when their reader is released; one that is collected in a cycle waits 5 seconds for each.
        weakref.finalize(self, self._reader.clear)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """The step's labelled and unlabelled images, uint8. Any but the next step restarts the workers."""
        if step != self._next:
            loader = DataLoader(
                self.steps,
                batch_size=None,
                sampler=range(step, FOR_EVER),
                num_workers=self.workers,
                pin_memory=self.pin,
                generator=torch.Generator(),  # otherwise it draws from the global one
            )
            self._reader[:] = [iter(loader)]
        self._next = step + 1
        read = next(self._reader[0])
        if isinstance(read, UserError):
            raise read
        return read


class _Steps(Dataset[tuple[Tensor, Tensor] | UserError]):
    def __init__(self, images: FileImages, picks: Picks) -> None:
        self.images, self.picks = images, picks

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | UserError:
        labelled, unlabelled = self.picks(step)
        try:
            return self.images[labelled], self.images[unlabelled]
        except UserError as error:  # returned: one that is raised reaches the user as a worker's traceback
            return error
