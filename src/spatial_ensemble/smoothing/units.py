"""Which weights share one draw, and the layout of a tensor's mask."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from spatial_ensemble.smoothing.draw import draw_key
from spatial_ensemble.smoothing.shards import rows

Unit = Literal["layer", "tensor", "channel", "element"]
Group = Callable[[str], str]

UNITS: tuple[str, ...] = get_args(Unit)


class MaskLayout(NamedTuple):
    """Which draw each element of a tensor, or of one rank's shard of it, takes.

    Element j of the local tensor in row-major order is element g = j // row * stride + offset + j % row of the global
    tensor, and takes draw g // unit_size.

    Attributes:
        key: Philox's key, or None for a tensor that is never preserved.
        unit_size: elements that share one draw.
        units: number of draws of the whole global tensor.
        row, stride, offset: the shard, see `shards.rows`.
        rounding: Philox's key of stochastic rounding, in which element g takes draw g; None: values are rounded as by
            `torch.lerp`.
    """

    key: tuple[int, int] | None
    unit_size: int
    units: int
    row: int
    stride: int
    offset: int
    rounding: tuple[int, int] | None = None

    @property
    def whole(self) -> bool:
        """Whether one draw at most decides for the whole tensor."""
        return self.key is None or self.units <= 1


def mask_layout(tensor: Tensor, name: str, unit: Unit, seed: int, group: Group | None = None) -> MaskLayout:
    """The mask layout of a tensor, or of this rank's shard in the global mask.

    Raises:
        ValueError: a DTensor whose placement is partial, or whose shard is not one run of equal rows.
    """
    size = unit_size(tuple(tensor.shape), unit)
    key = draw_key(seed, draw_name(name, unit, group))
    return MaskLayout(key, size, -(-tensor.numel() // size), *rows(tensor, name))


def unmasked(tensor: Tensor) -> MaskLayout:
    """The layout of a local tensor that is never preserved, such as an averaged buffer."""
    return MaskLayout(None, 1, tensor.numel(), tensor.numel(), tensor.numel(), 0)


def rounded(layout: MaskLayout, tensor: Tensor, name: str, seed: int) -> MaskLayout:
    """The layout with stochastic rounding, by draws that depend on no mask."""
    row, stride, offset = rows(tensor, name)
    return layout._replace(row=row, stride=stride, offset=offset, rounding=draw_key(seed, name, "rounding"))


def draw_name(name: str, unit: Unit, group: Group | None = None) -> str:
    """The name a tensor draws under: its own, its module's for `layer`, or the key that `group` maps it to.

    Example:
        >>> draw_name("layer1.0.bn1.weight", "layer"), draw_name("layer1.0.bn1.weight", "tensor")
        ('layer1.0.bn1', 'layer1.0.bn1.weight')
    """
    if group is not None:
        return group(name)
    return name.rpartition(".")[0] if unit == "layer" else name


def unit_size(shape: tuple[int, ...], unit: Unit) -> int:
    """How many elements, in row-major order, share one draw.

    Example:
        >>> unit_size((64, 3, 7, 7), "channel"), unit_size((64, 3, 7, 7), "tensor")
        (147, 9408)
    """
    if unit == "element" or not shape:
        return 1
    return max(math.prod(shape[1:] if unit == "channel" else shape), 1)
