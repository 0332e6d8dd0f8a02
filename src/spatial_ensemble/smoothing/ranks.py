"""Comparing the teachers of all ranks, and repairing one that differs."""

import ctypes
import hashlib
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor

from spatial_ensemble.smoothing.shards import is_sharded, local, rows

_Pieces = dict[str, tuple[tuple[object, ...], bytes]]  # name -> (position and kind of a rank's piece, hash)


def fingerprint(tensors: Mapping[str, Tensor], step: int) -> str:
    """A hash of step and tensors. Sharded tensors are gathered first, so every world size gives the same."""
    digest = hashlib.blake2b(str(step).encode(), digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_hash(tensor.full_tensor() if is_sharded(tensor) else tensor))
    return digest.hexdigest()


def verify(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> dict[int, list[str]]:
    """{rank: names of the tensors in which it differs from the majority of the ranks that hold the same piece}.

    Hashes are compared, 16 bytes a tensor and rank. On a tie the lowest rank counts as right. A shard that no other
    rank holds cannot be compared. Ranks may hold different parts of a model, if equal names, shapes and dtypes mean the
    same tensor.

    Args:
        tensors: name -> tensor of this rank's teacher.
        state: what all later draws depend on (step, seed, unit, ...), compared under the name "(step)".
    """
    found: dict[int, list[str]] = {}
    for name, rank, _ in _deviations(tensors, state):
        found.setdefault(rank, []).append(name)
    return found


def repair(
    tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> tuple[dict[int, list[str]], Mapping[str, Any] | None]:
    """Overwrite every tensor that `verify` names by that of a rank of the majority.

    Returns:
        What `verify` found, and the state of the majority if this rank's differs.
    """
    found: dict[int, list[str]] = {}
    majority_state = None
    for name, rank, source in _deviations(tensors, state):
        found.setdefault(rank, []).append(name)
        tensor = local(tensors[name]).detach() if name in tensors else None
        if dist.get_rank() == source:  # as objects, which any backend sends, wherever the tensors are
            dist.send_object_list([state if tensor is None else tensor.cpu()], dst=rank)
        elif dist.get_rank() == rank:
            received: list[Any] = [None]
            dist.recv_object_list(received, src=source)
            if tensor is None:
                majority_state = received[0]
            else:
                tensor.copy_(received[0])
    return found, majority_state


def _deviations(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """(name, deviating rank, first rank of the majority), the same list on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    own: _Pieces = {
        name: ((*rows(t, name), local(t).numel(), tuple(t.shape), str(t.dtype)), _hash(local(t)))
        for name, t in tensors.items()
    }
    own["(step)"] = (), repr(state).encode()
    gathered: list[_Pieces] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, own)
    deviations = []
    for name in {name: None for pieces in gathered for name in pieces}:
        holders: dict[tuple[object, ...], dict[bytes, list[int]]] = {}
        for rank, pieces in enumerate(gathered):
            if name in pieces:
                piece, value = pieces[name]
                holders.setdefault(piece, {}).setdefault(value, []).append(rank)
        for values in holders.values():
            majority = max(values.values(), key=len)  # of equals the first, which has the lowest rank
            deviations += [(name, r, majority[0]) for ranks in values.values() if ranks is not majority for r in ranks]
    return sorted(deviations)


def _hash(tensor: Tensor) -> bytes:
    """Hash a tensor's bytes in place; without NumPy torch has no other access to them."""
    data = tensor.detach().cpu().contiguous()
    raw = (ctypes.c_char * (data.numel() * data.element_size())).from_address(data.data_ptr()) if data.numel() else b""
    return hashlib.blake2b(raw, digest_size=16).digest()
