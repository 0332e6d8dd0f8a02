"""Proof that the teachers of all ranks agree, and the mending of one that does not."""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from spatial_ensemble.smoothing.pairing import Pairing
from spatial_ensemble.smoothing.shards import is_sharded, local, rows

if TYPE_CHECKING:
    from spatial_ensemble.smoothing.teacher import Teacher

_Pieces = dict[str, tuple[tuple[int, ...], bytes]]  # name -> (where a rank's part lies and its size, its hash)


def fingerprint(teacher: Teacher) -> str:
    """A hash of step and tensors; a sharded tensor is gathered first, so that every world size gives the same."""
    digest = hashlib.blake2b(str(teacher.step).encode(), digest_size=16)
    for name, tensor in _tensors(teacher).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_hash(tensor.full_tensor() if is_sharded(tensor) else tensor))
    return digest.hexdigest()


def verify(teacher: Teacher) -> dict[int, list[str]]:
    """{rank: names of the tensors in which it differs from the majority of the ranks that hold the same piece}.

    The counters `step` and `skipped`, on which all draws to come depend, are compared under the name "(step)".

    Hashes are compared, 16 bytes a tensor and rank. On a tie the lowest rank is taken to be right. A shard that no
    other rank holds has nothing to be compared with.
    """
    found: dict[int, list[str]] = {}
    for name, rank, _ in _deviations(teacher):
        found.setdefault(rank, []).append(name)
    return found


def repair(teacher: Teacher) -> dict[int, list[str]]:
    """Send every tensor that `verify` names from a rank of the majority; returns what `verify` found before."""
    found: dict[int, list[str]] = {}
    tensors = _tensors(teacher)
    device = local(next(iter(tensors.values()))).device if tensors else torch.device("cpu")
    tensors["(step)"] = torch.tensor([teacher.step, teacher.skipped], device=device)
    for name, rank, source in _deviations(teacher):
        found.setdefault(rank, []).append(name)
        tensor = local(tensors[name]).detach()
        if dist.get_rank() == source:
            dist.send(tensor.contiguous(), dst=rank)
        elif dist.get_rank() == rank:
            received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            dist.recv(received, src=source)
            tensor.copy_(received)
    teacher.step, teacher.skipped = tensors["(step)"].tolist()
    return found


def _deviations(teacher: Teacher) -> list[tuple[str, int, int]]:
    """(name, deviating rank, first rank of the majority), the same list on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    own: _Pieces = {
        name: ((*rows(tensor, name), local(tensor).numel()), _hash(local(tensor)))
        for name, tensor in _tensors(teacher).items()
    }
    own["(step)"] = (), f"{teacher.step} {teacher.skipped}".encode()
    gathered: list[_Pieces] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, own)
    deviations = []
    for name in {name: None for pieces in gathered for name in pieces}:  # ranks may hold different parts of a model
        holders: dict[tuple[int, ...], dict[bytes, list[int]]] = {}
        for rank, pieces in enumerate(gathered):
            if name in pieces:
                piece, value = pieces[name]
                holders.setdefault(piece, {}).setdefault(value, []).append(rank)
        for values in holders.values():
            majority = max(values.values(), key=len)  # of equals the first, which has the lowest rank
            deviations += [(name, r, majority[0]) for ranks in values.values() if ranks is not majority for r in ranks]
    return sorted(deviations)


def _tensors(teacher: Teacher) -> dict[str, Tensor]:
    """Canonical name -> tensor, in the order of the names."""
    return {pair.name: pair.teacher for pair in Pairing(teacher.module, teacher.module).pairs}


def _hash(tensor: Tensor) -> bytes:
    """Of a tensor's bytes, read in place: torch without NumPy has no other way to them."""
    data = tensor.detach().cpu().contiguous()
    raw = (ctypes.c_char * (data.numel() * data.element_size())).from_address(data.data_ptr()) if data.numel() else b""
    return hashlib.blake2b(raw, digest_size=16).digest()
