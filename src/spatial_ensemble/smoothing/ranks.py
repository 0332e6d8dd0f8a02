"""Proof that the teachers of all ranks agree, and the mending of one that does not."""

from __future__ import annotations

import ctypes
import hashlib
from collections import Counter
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from spatial_ensemble.smoothing.units import is_sharded

if TYPE_CHECKING:
    from spatial_ensemble.smoothing.teacher import Teacher


def fingerprint(teacher: Teacher) -> str:
    """A hash of step and tensors; a sharded tensor is gathered first, so that every world size gives the same."""
    digest = hashlib.blake2b(str(teacher.step).encode(), digest_size=16)
    for name, tensor in sorted(_tensors(teacher).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_hash(tensor.full_tensor() if is_sharded(tensor) else tensor))
    return digest.hexdigest()


def verify(teacher: Teacher) -> dict[int, list[str]]:
    """{rank: names of the tensors in which it differs from the majority}; tensors cut into shards have no duplicate."""
    return {rank: names for rank, names in _minorities(teacher)[0].items() if names}


def repair(teacher: Teacher) -> dict[int, list[str]]:
    """Broadcast each tensor in which ranks differ from a rank of the majority."""
    minorities, sources = _minorities(teacher)
    tensors = _tensors(teacher)
    for name in sorted({name for names in minorities.values() for name in names}):
        tensor = tensors[name]
        whole = tensor.contiguous()
        dist.broadcast(whole, src=sources[name])
        with torch.no_grad():
            tensor.copy_(whole)
    return {rank: names for rank, names in minorities.items() if names}


def _minorities(teacher: Teacher) -> tuple[dict[int, list[str]], dict[str, int]]:
    """({rank: deviating names}, {name: the first rank of its majority})."""
    if not (dist.is_available() and dist.is_initialized()):
        return {}, {}
    own = {name: _hash(tensor) for name, tensor in _tensors(teacher).items() if not is_sharded(tensor)}
    gathered: list[dict[str, bytes]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, own)
    majority = {name: Counter(hashes[name] for hashes in gathered).most_common(1)[0][0] for name in own}
    minorities = {
        rank: [name for name, value in hashes.items() if value != majority[name]]
        for rank, hashes in enumerate(gathered)
    }
    sources = {name: next(r for r, hashes in enumerate(gathered) if hashes[name] == majority[name]) for name in own}
    return minorities, sources


def _tensors(teacher: Teacher) -> dict[str, Tensor]:
    return {**dict(teacher.module.named_parameters()), **dict(teacher.module.named_buffers())}


def _hash(tensor: Tensor) -> bytes:
    """Of a tensor's bytes, read in place: torch without NumPy has no other way to them."""
    data = tensor.detach().cpu().contiguous()
    raw = (ctypes.c_char * (data.numel() * data.element_size())).from_address(data.data_ptr()) if data.numel() else b""
    return hashlib.blake2b(raw, digest_size=16).digest()
