"""The teacher's own state as one tensor, which safetensors and torch.distributed.checkpoint hold like any other."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatial_ensemble.smoothing.units import UNITS

VERSION = 1
LENGTH = 16  # entries; the unused ones are 0

# Entry 0 is the version; then a number, or the index of a choice, for each field. The order is the format: append only.
# The first choice of a field that is added must be its default, which older states mean by 0.
_FIELDS: dict[str, tuple[object, ...] | None] = {
    "step": None,
    "skipped": None,
    "seed": None,
    "update_every": None,
    "unit": UNITS,
    "buffers": ("average", "copy", "follow", "keep"),
    "trainable_only": (False, True),
    "rounding": (None, "stochastic", "nearest"),  # None: nothing is in half precision
}


def pack(state: Mapping[str, Any]) -> Tensor:
    """A state as int64 [16], on the CPU.

    Example:
        >>> state = dict(step=3, skipped=0, seed=7, update_every=1, unit="tensor", buffers="copy")
        >>> state |= dict(trainable_only=False, rounding="nearest")
        >>> pack(state)
        tensor([1, 3, 0, 7, 1, 1, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0])
        >>> unpack(pack(state)) == state
        True
    """
    entries = [state[name] if choices is None else choices.index(state[name]) for name, choices in _FIELDS.items()]
    padding = [0] * (LENGTH - 1 - len(entries))
    return torch.tensor([VERSION, *entries, *padding], dtype=torch.int64, device="cpu")


def unpack(packed: Tensor | Mapping[str, Any]) -> dict[str, Any]:
    """The state that `pack` was given; the dicts that teachers kept before are read too.

    Raises:
        ValueError: not a teacher's state, or one of a later version.
    """
    if isinstance(packed, Mapping):
        return {name: choices[0] for name, choices in _FIELDS.items() if choices is not None} | dict(packed)
    entries = packed.tolist()
    if packed.dtype != torch.int64 or packed.shape != (LENGTH,) or entries[0] < 1:
        raise ValueError(f"not the state of a Teacher, which is int64 [{LENGTH}]: {packed}")
    state: dict[str, Any] = {}
    for (name, choices), entry in zip(_FIELDS.items(), entries[1:], strict=False):
        if choices is not None and entry >= len(choices):
            raise ValueError(f"the saved teacher has an unknown {name} ({entry}): load it by the version that wrote it")
        state[name] = entry if choices is None else choices[entry]
    if entries[0] > VERSION or any(entries[1 + len(_FIELDS) :]):
        raise ValueError(
            f"the saved teacher has options of a later version (format {entries[0]}, this version reads {VERSION}): "
            "load it by the version that wrote it"
        )
    return state


def refuse_others(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse the state of a teacher with other options."""
    for name in ("unit", "buffers", "update_every", "trainable_only", "rounding"):
        unused = name == "rounding" and None in (state[name], own[name])
        if state[name] != own[name] and not unused:
            raise ValueError(
                f"the saved teacher has {name}={state[name]!r}, this one {own[name]!r}, and would not continue it: "
                f"build the Teacher with {name}={state[name]!r}"
            )
