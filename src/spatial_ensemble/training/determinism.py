"""Random state and deterministic algorithms of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of that device; `torch.manual_seed` would seed every GPU's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """Use deterministic cuDNN kernels inside; its other settings stay the user's.

    `torch.backends.cudnn.flags` would also change whether cuDNN and TF32 are enabled.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
