"""A data set in memory: uint8 images, labels, and their normalisation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spatial_ensemble.data.sources.streaming import FileImages
from spatial_ensemble.errors import UserError

Pixels = Tensor | FileImages


@dataclass(frozen=True)
class Images:
    """Square images, uint8 [N, C, S, S], in memory or in their files, and their classes, int64 [N] (-1: unknown)."""

    images: Pixels
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def known(self) -> Tensor:
        """Mask of the images with a known class, bool [N]; UserError: there are none."""
        known = self.labels >= 0
        if not known.any():
            raise UserError(f"none of the {len(self)} images has a known class to learn from")
        return known


@dataclass(frozen=True)
class ImageData:
    """A data set: training and test images, names of the classes, and what augmentation needs.

    `mean` and `std` are per channel over the training images, in units of the full range (1.0 is white). `flip`: a
    mirror image keeps its class. `skipped` counts broken images.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    skipped: int = 0

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[1])

    @property
    def size(self) -> int:
        return int(self.train.images.shape[-1])

    @cached_property
    def digest(self) -> str:
        """Digest of images and labels: 32 hexadecimal digits.

        For images that stay in their files it covers class folder and file name: reading the pixels takes too long.
        """
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.test):
            digest.update(part.labels.numpy().data)
            pixels = part.images
            digest.update(pixels.contiguous().numpy().data if isinstance(pixels, Tensor) else pixels.names())
        return digest.hexdigest()


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Float32 images of zero mean and unit deviation: `(x - mean) / std`.

    Args:
        images: [B, C, H, W], uint8 in 0..255 or floating in [0, 1].
        mean, std: [C, 1, 1] float32 in units of the full range, on the device of the images.

    Returns:
        float32 [B, C, H, W], channels last in memory, which convolutions are fastest with.

    Example:
        >>> white, half = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.full((1, 1, 1), 0.5)
        >>> normalise(white, half, half).unique()
        tensor([1.])
    """
    if images.dtype == torch.uint8:
        return images.to(torch.float32, memory_format=torch.channels_last).sub_(mean * 255).div_(std * 255)
    return images.to(torch.float32, memory_format=torch.channels_last).sub(mean).div_(std)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images [N, C, H, W], in units of the full range.

    From exact integer sums. The deviation of a constant channel is 1, so that dividing by it leaves that channel at 0.
    """
    means, stds, values = [], [], torch.arange(256)
    for channel in range(images.shape[1]):
        # In pieces, to keep bincount's copy small.
        pieces = (torch.bincount(piece[:, channel].flatten(), minlength=256) for piece in images.split(4096))
        counts = torch.stack(list(pieces)).sum(0)
        number, total, squares = (int((counts * values**power).sum()) for power in (0, 1, 2))
        means.append(total / number / 255)
        stds.append((number * squares - total**2) ** 0.5 / number / 255 or 1.0)
    return tuple(means), tuple(stds)


def channel_tensor(values: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """One number per channel, shaped [C, 1, 1] to broadcast over images."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
