"""Random draws as pure functions of (seed, what, index)."""

import hashlib

import torch


def derive_seed(seed: int, *what: str | int) -> int:
    """A 63-bit seed from a seed and the name of what is drawn, stable across processes and versions."""
    digest = hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *what: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. `generator(seed, "order", epoch)`: the global generators stay untouched."""
    return torch.Generator().manual_seed(derive_seed(seed, *what))
