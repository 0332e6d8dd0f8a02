"""Label splits: the images whose labels a run may use, and those that are held out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spatial_ensemble.errors import UserError
from spatial_ensemble.seeding import generator


def balanced_indices(labels: Tensor, count: int | None, classes: Sequence[str], seed: int) -> Tensor:
    """The images whose labels may be used: the same number of every class, drawn by seed.

    The draws of one seed are nested: a larger count contains a smaller one.

    Args:
        labels: int64 [N], -1 where the class is unknown.
        count: images in all, a multiple of the number of classes; None takes every labelled image.
        classes: the names of the classes; class i has label i.
        seed: of the draw.

    Returns:
        int64 [count], increasing indices into `labels`.

    Raises:
        UserError: the count is not positive, not a multiple of the number of classes, or more than a class has.

    Example:
        >>> balanced_indices(torch.tensor([0, 1, 1, 0, -1]), None, ("cat", "dog"), seed=0)
        tensor([0, 1, 2, 3])
    """
    if count is None:
        return torch.nonzero(labels >= 0).flatten()
    if count <= 0 or count % len(classes):
        near = max(1, round(count / len(classes))) * len(classes)
        raise UserError(f"{count} labels cannot be shared out evenly over {len(classes)} classes: try {near}")
    each = count // len(classes)
    available = torch.bincount(labels[labels >= 0], minlength=len(classes))
    least, smallest = (int(value) for value in available.min(dim=0))
    if each > least:
        raise UserError(
            f"{count} labels are {each} of each class, but class {classes[smallest]!r} has only {least} training "
            f"images: at most {least * len(classes)} labels"
        )
    return draw_per_class(labels, [each] * len(classes), seed, "labels")


def draw_per_class(labels: Tensor, counts: Sequence[int], seed: int, what: str) -> Tensor:
    """`counts[c]` images of every class c, drawn by (seed, what): increasing indices into `labels`."""
    chosen = []
    for label, count in enumerate(counts):
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator(seed, what, label))
        chosen.append(members[order[:count]])
    return torch.cat(chosen).sort().values


def without(total: int, indices: Tensor) -> Tensor:
    """The indices from 0 to total - 1 that are not in `indices`, increasing."""
    return torch.ones(total, dtype=torch.bool).index_fill(0, indices, False).nonzero().flatten()
