"""Proof that the teachers of all ranks agree, and the mending of one that does not."""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from spatial_ensemble.smoothing.pairing import Pairing
from spatial_ensemble.smoothing.shards import is_sharded, local, rows

if TYPE_CHECKING:
    from spatial_ensemble.smoothing.teacher import Teacher

_Pieces = dict[str, tuple[tuple[object, ...], bytes]]  # name -> (where a rank's part lies and what it is, its hash)


def fingerprint(teacher: Teacher) -> str:
    """A hash of step and tensors; a sharded tensor is gathered first, so that every world size gives the same."""
    digest = hashlib.blake2b(str(teacher.step).encode(), digest_size=16)
    for name, tensor in _tensors(teacher).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_hash(tensor.full_tensor() if is_sharded(tensor) else tensor))
    return digest.hexdigest()


def verify(teacher: Teacher) -> dict[int, list[str]]:
    """{rank: names of the tensors in which it differs from the majority of the ranks that hold the same piece}.

    What all draws to come depend on (step, seed, unit and the like) is compared under the name "(step)".

    Hashes are compared, 16 bytes a tensor and rank. On a tie the lowest rank is taken to be right. A shard that no
    other rank holds has nothing to be compared with. Ranks may hold other parts of a model, if equal names, shapes and
    dtypes mean the same tensor.
    """
    found: dict[int, list[str]] = {}
    for name, rank, _ in _deviations(teacher):
        found.setdefault(rank, []).append(name)
    return found


def repair(teacher: Teacher) -> dict[int, list[str]]:
    """Send every tensor that `verify` names from a rank of the majority; returns what `verify` found before.

    Raises:
        ValueError: a rank's teacher has another unit, buffers or update_every than the majority's.
    """
    found: dict[int, list[str]] = {}
    tensors, mistake = _tensors(teacher), None
    for name, rank, source in _deviations(teacher):
        found.setdefault(rank, []).append(name)
        tensor = local(tensors[name]).detach() if name in tensors else None
        if dist.get_rank() == source:  # as objects, which any backend sends, wherever the tensors are
            dist.send_object_list([teacher.get_extra_state() if tensor is None else tensor.cpu()], dst=rank)
        elif dist.get_rank() == rank:
            received: list[Any] = [None]
            dist.recv_object_list(received, src=source)
            if tensor is not None:
                tensor.copy_(received[0])
                continue
            try:
                teacher.set_extra_state(received[0])
            except ValueError as error:
                mistake = error  # raised once nobody waits to send any more
    if mistake is not None:
        raise mistake
    return found


def _deviations(teacher: Teacher) -> list[tuple[str, int, int]]:
    """(name, deviating rank, first rank of the majority), the same list on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    own: _Pieces = {
        name: ((*rows(t, name), local(t).numel(), tuple(t.shape), str(t.dtype)), _hash(local(t)))
        for name, t in _tensors(teacher).items()
    }
    own["(step)"] = (), repr(teacher.get_extra_state()).encode()
    gathered: list[_Pieces] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, own)
    deviations = []
    for name in {name: None for pieces in gathered for name in pieces}:  # ranks may hold different parts of a model
        holders: dict[tuple[object, ...], dict[bytes, list[int]]] = {}
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
