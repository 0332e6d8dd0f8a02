"""Figures of a teacher and of rules. matplotlib is imported when one is drawn.

Each function draws into `axes`, or into a new figure, and returns the axes, whose `figure` can be saved or shown.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from spatial_ensemble.smoothing import Smoothing, Teacher, distance
from spatial_ensemble.smoothing.pairing import canonical_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = 40  # more names below each other cannot be read
CELLS = 2000  # more units side by side cannot be told apart


def age_map(teacher: Teacher, axes: "Axes | None" = None) -> "Axes":
    """Draw how many steps ago each unit last moved: a row for each tensor in the network's order, a cell for each unit.

    Of a tensor with more than 2,000 units, evenly spaced ones are shown.

    Args:
        teacher: its `age()` is drawn.
        axes: where to draw; None: in a new figure.

    Example:
        >>> from spatial_ensemble import spatial_ensemble
        >>> teacher = Teacher(student := nn.Linear(4, 2), spatial_ensemble(0.7), unit="channel")
        >>> teacher.update(student)
        >>> [label.get_text() for label in age_map(teacher).get_yticklabels()]
        ['weight', 'bias']
    """
    ages = teacher.age()
    names = [name for name in _names(teacher) if name in ages]
    axes = axes or _axes(len(names))
    oldest = max([1, *(int(age.max()) for age in ages.values() if age.numel())])
    for row, name in enumerate(names):
        cells = ages[name].reshape(1, -1)
        cells = cells[:, :: -(-cells.shape[1] // CELLS) or 1]
        image = axes.imshow(
            cells.tolist(), "viridis_r", vmin=0, vmax=oldest, extent=(0, 1, row + 0.46, row - 0.46), aspect="auto"
        )
    if names:
        axes.figure.colorbar(image, ax=axes, label="steps since last moved")
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_xlabel(f"units (unit: {teacher.unit})")
    _rows(axes, names)
    return axes


def distances(teacher: Teacher, student: nn.Module, axes: "Axes | None" = None) -> "Axes":
    """Draw how far teacher and student are apart in each layer: the root mean square of T - S over its weights.

    A layer is a module with floating tensors of its own. Sharded tensors are gathered, so all ranks must call it.

    Args:
        teacher: the teacher.
        student: the network that it follows.
        axes: where to draw; None: in a new figure.

    Example:
        >>> from spatial_ensemble import spatial_ensemble
        >>> teacher = Teacher(student := nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), spatial_ensemble(0.7))
        >>> [label.get_text() for label in distances(teacher, student).get_yticklabels()]
        ['0', '1']
    """
    found, sizes = distance(teacher, student), _names(teacher)
    layers: dict[str, tuple[float, int]] = {}
    for name in (name for name in sizes if name in found):
        layer = name.rpartition(".")[0] or name
        square, size = layers.get(layer, (0.0, 0))
        layers[layer] = square + found[name] ** 2, size + sizes[name]
    axes = axes or _axes(len(layers))
    axes.barh(range(len(layers)), [(square / max(size, 1)) ** 0.5 for square, size in layers.values()])
    axes.set_xlabel("root mean square of teacher - student")
    _rows(axes, list(layers))
    return axes


def half_lives(smoothings: Mapping[str, Smoothing], steps: int, axes: "Axes | None" = None) -> "Axes":
    """Draw the half-life of a student's weight under each rule, as its schedules change it.

    Args:
        smoothings: name -> rule.
        steps: length of the training in updates.
        axes: where to draw; None: in a new figure.

    Example:
        >>> from spatial_ensemble import cosine, temporal_moving_average
        >>> rules = {"0.99": temporal_moving_average(0.99), "to 1": temporal_moving_average(cosine(0.99, 1.0, 100))}
        >>> [line.get_label() for line in half_lives(rules, steps=100).get_lines()]
        ['0.99', 'to 1']
    """
    axes = axes or _axes(14)
    shown = range(0, steps, max(1, steps // 500))
    for name, smoothing in smoothings.items():
        axes.plot(shown, [smoothing.half_life(step) for step in shown], label=name)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("half-life, updates")
    axes.legend(frameon=False)
    return axes


def _names(teacher: Teacher) -> dict[str, int]:
    """Canonical name -> number of elements, in the order of the network."""
    named = dict(teacher.module.named_parameters()) | dict(teacher.module.named_buffers())
    return {canonical: named[name].numel() for name, canonical in canonical_names(named).items()}


def _axes(rows: int) -> "Axes":
    from matplotlib.figure import Figure  # without pyplot, which would keep every figure

    return Figure(figsize=(6, 1.2 + 0.2 * min(max(rows, 4), LABELS)), layout="constrained").subplots()


def _rows(axes: "Axes", names: list[str]) -> None:
    """Name the rows from top to bottom, as many as can be read."""
    every = -(-len(names) // LABELS) or 1
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=8)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
