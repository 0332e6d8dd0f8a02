"""The figures of a comparison, each drawn for light or dark paper and for a wide or a narrow page.

One colour a smoothing in every figure, after Okabe and Ito for colour-blind readers, and named where it is drawn.
"""

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spatial_ensemble.studies.statistics import by_seed

Ages = Mapping[int, Mapping[str, np.ndarray]]  # seed -> tensor -> age of each of its units, in steps
NARROW = 3.5  # inches: what a phone shows, at 96 dots an inch


@dataclass(frozen=True)
class Paper:
    """What a figure is drawn on: colours, and the width in inches."""

    ink: str
    faint: str
    ground: str
    accent: str
    smoothing: Mapping[str, str]
    width: float = 7.2

    @property
    def narrow(self) -> bool:
        return self.width <= NARROW


LIGHT = Paper(
    ink="#1f2328",
    faint="#c9ced4",
    ground="#ffffff",
    accent="#7b5fb2",
    smoothing={"tma": "#5c6670", "tma-matched": "#0072b2", "se": "#008f68", "sts": "#d55e00"},
)
DARK = Paper(
    ink="#e6e8eb",
    faint="#454c55",
    ground="#16191d",
    accent="#b39ddb",
    smoothing={"tma": "#a9b2bc", "tma-matched": "#56b4e9", "se": "#2bc796", "sts": "#ff8a3d"},
)


def accuracy(results: dict[str, Any], paper: Paper) -> Figure:
    """Teacher accuracy against step, a panel a smoothing: mean over the seeds, band from lowest to highest.

    The dotted line repeats the mean of tma for comparison.
    """
    smoothings = [entry["smoothing"] for entry in results["summary"]]
    curves = {name: _curves(results["runs"], name) for name in smoothings}
    columns = min(2 if paper.narrow else 4, len(smoothings))
    lines = -(-len(smoothings) // columns)
    figure = _figure(paper, 0.5 + 2.2 * lines)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, smoothings, strict=False):
        steps, values = curves[name]
        colour = paper.smoothing[name]
        if "tma" in curves and name != "tma":
            axes.plot(curves["tma"][0], curves["tma"][1].mean(0), ":", color=paper.smoothing["tma"], linewidth=1.2)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.25, linewidth=0)
        axes.plot(steps, values.mean(0), color=colour, linewidth=1.8)
        axes.set_title(f"{name}\n{values.mean(0)[-1]:.1f} %", color=colour, loc="left", fontsize=10, fontweight="bold")
        axes.set_xticks([0, steps[-1] // 2, steps[-1]])
        _plain(axes, paper)
    for axes in grid.flat[len(smoothings) :]:
        axes.set_visible(False)
    figure.supxlabel("training step", color=paper.ink, fontsize=10)
    figure.supylabel("teacher accuracy, %", color=paper.ink, fontsize=10)
    return figure


def _curves(runs: list[dict[str, Any]], smoothing: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T], and teacher accuracies [seeds, T] at the steps that all seeds have."""
    own = [run["history"] for run in runs if run["smoothing"] == smoothing]
    histories = [{row["step"]: row["teacher_accuracy"] for row in history} for history in own]
    steps = sorted(set.intersection(*(set(history) for history in histories)))
    return np.array(steps), np.array([[history[step] for step in steps] for history in histories])


def differences(results: dict[str, Any], paper: Paper) -> Figure:
    """Paired differences: a point a seed, a diamond for the mean, its 95 % interval, and the line of no difference."""
    paired = results["paired"]
    figure = _figure(paper, 0.9 + (0.62 if paper.narrow else 0.42) * len(paired))
    axes = figure.subplots()
    axes.axvline(0, color=paper.ink, linewidth=1)
    for row, pair in enumerate(paired):
        colour = paper.smoothing[pair["smoothing"]]
        ours, theirs = (by_seed(results["runs"], pair[key]) for key in ("smoothing", "baseline"))
        points = [ours[seed] - theirs[seed] for seed in pair["seeds"]]
        numbers = f"{pair['mean_difference']:+.2f}"
        if pair["ci95"] is not None:
            low, high = pair["ci95"]
            axes.plot([low, high], [row, row], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="round")
            numbers += f" [{low:+.2f}, {high:+.2f}]"
        axes.plot([pair["mean_difference"]], [row], "D", color=colour, markersize=7)
        axes.plot(points, [row] * len(points), "o", color=paper.ground, markeredgecolor=colour, markersize=4.5)
        _label_row(axes, paper, row, f"{pair['smoothing']} - {pair['baseline']}", numbers, colour)
    axes.set_ylim(len(paired) - 0.5, -0.8 if paper.narrow else -0.6)
    axes.set_yticks([])
    axes.set_xlabel(
        "difference in teacher accuracy, points"
        if paper.narrow
        else "difference in teacher accuracy, percentage points"
    )
    _plain(axes, paper)
    axes.spines["left"].set_visible(False)
    return figure


def _label_row(axes: Axes, paper: Paper, row: int, name: str, numbers: str, colour: str) -> None:
    """Name and numbers on both sides of a row, or above it on a narrow page."""
    name, numbers = name.replace(" - ", " \N{MINUS SIGN} "), numbers.replace("-", "\N{MINUS SIGN}")
    sides = ((0, -8, name, "right", colour), (1, 8, numbers, "left", paper.ink))
    above = ((0, 0, f"{name}  {numbers}", "left", colour),)
    for x, shift, text, align, ink in above if paper.narrow else sides:
        axes.annotate(
            text,
            (x, row),
            xycoords=("axes fraction", "data"),
            xytext=(shift, 13 if paper.narrow else 0),
            textcoords="offset points",
            ha=align,
            va="center",
            color=ink,
            fontsize=9.5,
            bbox={"facecolor": paper.ground, "edgecolor": "none", "pad": 1},
        )


def age_map(ages: Ages, preserve_prob: float, paper: Paper) -> Figure:
    """Which steps' students the final teacher is stitched from.

    Above: the share of units of each age, over all seeds, beside the law (1 - p) p^k. Below: the layers of the first
    seed's teacher; the area of a dot is the share of the layer's units of that age.
    """
    pooled = np.concatenate([values for tensors in ages.values() for values in tensors.values()])
    axis = np.arange(max(int(pooled.max()), 1) + 1)
    layers = _layers(ages[min(ages)])
    height = 0.2 * max(4, min(len(layers), 40))
    figure = _figure(paper, 2.6 + height)
    law, stitched = figure.subplots(2, 1, sharex=True, height_ratios=[1.8, height])

    shares = np.bincount(pooled, minlength=len(axis)) / len(pooled)
    law.bar(axis, shares, width=0.7, color=paper.accent, alpha=0.6)
    expected = (1 - preserve_prob) * preserve_prob**axis
    law.plot(axis, expected, "o-", color=paper.ink, markersize=3, linewidth=1)
    law.text(
        0.98,
        0.95,
        "bars: found\nline: the law (1 \N{MINUS SIGN} p) p\N{MODIFIER LETTER SMALL K}",
        transform=law.transAxes,
        ha="right",
        va="top",
        color=paper.ink,
        fontsize=9,
    )
    law.set_ylabel("share of units")
    law.set_ylim(0)

    for row, values in enumerate(layers.values()):
        found = Counter(values.tolist())
        area = [70 * count / len(values) for count in found.values()]
        stitched.scatter(list(found), [row] * len(found), s=area, color=paper.accent, linewidths=0, zorder=2)
    every = -(-len(layers) // 40)  # more names than that cannot be read
    stitched.set_yticks(range(0, len(layers), every), list(layers)[::every])
    stitched.set_ylim(len(layers) - 0.3, -0.7)
    stitched.grid(axis="y", color=paper.faint, linewidth=0.5)
    stitched.set_xlabel("age, steps" if paper.narrow else "age: steps since last moved")
    stitched.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (law, stitched):
        _plain(axes, paper)
    return figure


def _layers(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Ages of all units that one module owns, by the module's name."""
    found: dict[str, list[np.ndarray]] = {}
    for name, values in tensors.items():
        layer = name.rpartition(".")[0] or name
        found.setdefault(layer.removeprefix("backbone."), []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


def _figure(paper: Paper, height: float) -> Figure:
    return Figure(figsize=(paper.width, height), layout="constrained", facecolor=paper.ground)


def _plain(axes: Axes, paper: Paper) -> None:
    axes.set_facecolor(paper.ground)
    axes.tick_params(colors=paper.ink, length=3, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(paper.faint)
    axes.xaxis.label.set_color(paper.ink)
    axes.yaxis.label.set_color(paper.ink)


def svg(figure: Figure) -> str:
    """The figure as SVG: no date in it, and its text as text in the reader's own fonts."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "spatial-ensemble"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().replace("'DejaVu Sans'", "system-ui")


def png(figure: Figure, path: Path) -> None:
    """The figure as PNG, 200 dots an inch."""
    figure.savefig(path, format="png", dpi=200)
