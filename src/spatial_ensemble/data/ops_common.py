"""What the batched image operations share: one check, and one way to broadcast a number an image."""

import torch
from torch import Tensor


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is uint8 [B, C, H, W] with one or three channels."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 [B, C, H, W] with C = 1 or 3, got {images.dtype} {list(images.shape)}: "
            "stack them and convert them to uint8 first"
        )


def per_image(values: Tensor, images: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` [B] as [B, 1, 1, 1] beside `images` [B, C, H, W], on their device and without waiting for it."""
    if values.shape != images.shape[:1]:
        raise ValueError(f"expected one number for each of {len(images)} images, got shape {list(values.shape)}")
    return values.to(dtype).to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def to_uint8(values: Tensor) -> Tensor:
    """Truncate numbers in [0, 255] towards zero; by way of int16, which processors convert to four times faster."""
    return values.to(torch.int16).to(torch.uint8)
