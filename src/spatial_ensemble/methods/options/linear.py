"""Options of linear evaluation."""

from dataclasses import dataclass

from spatial_ensemble.methods.options import check_types


@dataclass(frozen=True)
class LinearOptions:
    """Options of linear evaluation.

    Args:
        norm: add BatchNorm1d after the linear layer, as the paper does.
    """

    norm: bool = True

    def __post_init__(self) -> None:
        check_types(self)
