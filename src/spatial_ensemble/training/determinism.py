"""Random state and deterministic algorithms, set for a run and restored after it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random_state(device: torch.device | None = None) -> Iterator[None]:
    """Restore torch's global generators on exit, those of the CPU and of that device."""
    cuda = [device.index or 0] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        yield


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
