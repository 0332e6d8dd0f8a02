"""Which weights share one draw."""

import math
from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from spatial_ensemble.smoothing.draw import Place, draw_key
from spatial_ensemble.smoothing.shards import rows

Unit = Literal["layer", "tensor", "channel", "element"]
Group = Callable[[str], str]

UNITS: tuple[str, ...] = get_args(Unit)


def draw_name(name: str, unit: Unit, group: Group | None = None) -> str:
    """The name under which a tensor draws: its own, its module's for `layer`, or what the user's `group` maps it to.

    Example:
        >>> draw_name("layer1.0.bn1.weight", "layer"), draw_name("layer1.0.bn1.weight", "tensor")
        ('layer1.0.bn1', 'layer1.0.bn1.weight')
    """
    if group is not None:
        return group(name)
    return name.rpartition(".")[0] if unit == "layer" else name


def unit_size(shape: tuple[int, ...], unit: Unit) -> int:
    """How many elements, counted row by row, share one draw.

    Example:
        >>> unit_size((64, 3, 7, 7), "channel"), unit_size((64, 3, 7, 7), "tensor")
        (147, 9408)
    """
    if unit == "element" or not shape:
        return 1
    return max(math.prod(shape[1:] if unit == "channel" else shape), 1)


def place(tensor: Tensor, name: str, unit: Unit, seed: int, group: Group | None = None) -> Place:
    """Where a tensor's draws lie; for a sharded one, where this rank's shard lies in the global mask.

    Raises:
        ValueError: a DTensor whose shard is partial, or cut along dimensions that leave no run of equal rows.
    """
    size = unit_size(tuple(tensor.shape), unit)
    key = draw_key(seed, draw_name(name, unit, group))
    return Place(key, size, -(-tensor.numel() // size), *rows(tensor, name))


def everywhere(tensor: Tensor) -> Place:
    """The place of a tensor that is never preserved, such as an averaged buffer."""
    return Place(None, 1, tensor.numel(), tensor.numel(), tensor.numel(), 0)
