"""Stochastic rounding to half precision, which keeps small changes that rounding to nearest loses.

At m = 0.9999 an update moves a weight by 1e-4 of its distance to the student. In bfloat16 that is mostly less than half
the spacing of its values, so that rounding to nearest undoes every update. Here the update is computed in float32 and
rounded up or down at random, with the probabilities that make its expectation exact.
"""

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["stochastic", "nearest"]

# Bits of float32's mantissa that a dtype drops, and its least normal value if float32's range is wider: below it the
# spacing is constant, and so it is in float32 once this value is added.
HALF = {torch.bfloat16: (16, 0.0), torch.float16: (13, 2.0**-14)}


def stochastic(x: Tensor, draws: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 to one of the two neighbours in a half-precision dtype, to x itself in expectation.

    Exact to the bit, subnormal numbers included, except that a subnormal float16 is first rounded to 2^-13 of their
    spacing, the resolution that float32 has beside normal ones. What dtype can represent, inf and NaN stay.

    Args:
        x: float32.
        draws: integers in [0, 2^16), in the shape of x.
        dtype: of the result, one of HALF.

    Source: Gupta et al. 2015 (arXiv 1502.02551), section 3.

    Example:
        >>> stochastic(torch.tensor([1.0, 1.001, 1.001]), torch.tensor([65535, 65535, 0]), torch.bfloat16)
        tensor([1.0000, 1.0078, 1.0000], dtype=torch.bfloat16)
    """
    dropped, least = HALF[dtype]
    magnitude = x.abs()
    base = (magnitude < least) * least
    bits = (magnitude + base).view(torch.int32) + (draws >> 16 - dropped).to(torch.int32)
    rounded = ((bits >> dropped << dropped).view(torch.float32) - base).copysign(x)
    return torch.where(x.isnan(), x, rounded).to(dtype)  # a NaN's bits may overflow
