"""The figures of a comparison, each for a light or dark, wide or narrow page.

Each arm has one colour in every figure, after Okabe and Ito for colour-blind readers, and is named where it is drawn.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spatial_ensemble.studies.comparison import Comparison
from spatial_ensemble.studies.job import Run

NARROW = 3.5  # inches: what a phone shows, at 96 dots an inch


@dataclass(frozen=True)
class Ages:
    """How many steps ago the units of an arm's final teachers were last moved."""

    arm: str
    preserve_prob: float
    unit: str
    steps: Mapping[int, Mapping[str, np.ndarray]]  # seed -> tensor -> age of each of its units


@dataclass(frozen=True)
class Paper:
    """What a figure is drawn on: colours, and the width in inches. `others` colours the arms that a user names."""

    ink: str
    faint: str
    ground: str
    accent: str
    smoothing: Mapping[str, str]
    others: tuple[str, ...]
    width: float = 7.2

    @property
    def narrow(self) -> bool:
        return self.width <= NARROW

    def colour(self, comparison: Comparison, name: str) -> str:
        """The colour of an arm, the same in every figure of a study."""
        named = [arm.name for arm in comparison.arms if arm.name not in self.smoothing]
        return self.smoothing[name] if name in self.smoothing else self.others[named.index(name) % len(self.others)]


LIGHT = Paper(
    ink="#1f2328",
    faint="#c9ced4",
    ground="#ffffff",
    accent="#7b5fb2",
    smoothing={"tma": "#5c6670", "tma-matched": "#0072b2", "se": "#008f68", "sts": "#d55e00"},
    others=("#b0528c", "#8a6d00", "#2f8fc4", "#6b4fa3", "#a03c2e", "#4f7a1f"),
)
DARK = Paper(
    ink="#e6e8eb",
    faint="#454c55",
    ground="#16191d",
    accent="#b39ddb",
    smoothing={"tma": "#a9b2bc", "tma-matched": "#56b4e9", "se": "#2bc796", "sts": "#ff8a3d"},
    others=("#e08cc0", "#e6c229", "#8fd0f5", "#c3aef0", "#f08a7a", "#a5d86a"),
)


def accuracy(comparison: Comparison, paper: Paper) -> Figure:
    """Teacher accuracy against step, a panel an arm: mean over the seeds, band from lowest to highest.

    The dotted line repeats the mean of the first baseline.
    """
    arms, reference = [entry.smoothing for entry in comparison.summary], comparison.baselines[0]
    curves = {name: _curves(comparison.runs, name) for name in arms}
    columns = min(2 if paper.narrow else 4, len(arms))
    lines = -(-len(arms) // columns)
    figure = _figure(paper, 0.5 + 2.2 * lines)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, arms, strict=False):
        (steps, values), colour = curves[name], paper.colour(comparison, name)
        if name != reference:
            known_steps, known = curves[reference]
            axes.plot(known_steps, known.mean(0), ":", color=paper.colour(comparison, reference), linewidth=1.2)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.25, linewidth=0)
        axes.plot(steps, values.mean(0), color=colour, linewidth=1.8)
        axes.set_title(f"{name}\n{values.mean(0)[-1]:.1f} %", color=colour, loc="left", fontsize=10, fontweight="bold")
        axes.set_xticks([0, steps[-1] // 2, steps[-1]])
        _plain(axes, paper)
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    figure.supxlabel("training step", color=paper.ink, fontsize=10)
    figure.supylabel("teacher accuracy, %", color=paper.ink, fontsize=10)
    return figure


def _curves(runs: Sequence[Run], arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T], and teacher accuracies [seeds, T] at the steps that all seeds have."""
    own = [run.history for run in runs if run.smoothing == arm]
    histories = [{row["step"]: row["teacher_accuracy"] for row in history} for history in own]
    steps = sorted(set.intersection(*(set(history) for history in histories)))
    return np.array(steps), np.array([[history[step] for step in steps] for history in histories])


def differences(comparison: Comparison, paper: Paper) -> Figure:
    """Paired differences: a point a seed, a diamond for the mean, its 95 % interval, and the line of no difference."""
    paired = comparison.paired
    figure = _figure(paper, 0.9 + (0.62 if paper.narrow else 0.42) * len(paired))
    axes = figure.subplots()
    axes.axvline(0, color=paper.ink, linewidth=1)
    for row, pair in enumerate(paired):
        colour = paper.colour(comparison, pair.smoothing)
        ours, theirs = comparison.accuracies[pair.smoothing], comparison.accuracies[pair.baseline]
        points = [ours[seed] - theirs[seed] for seed in pair.seeds]
        numbers = f"{pair.mean_difference:+.2f}"
        if pair.ci95 is not None:
            low, high = pair.ci95
            axes.plot([low, high], [row, row], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="round")
            numbers += f" [{low:+.2f}, {high:+.2f}]"
        axes.plot([pair.mean_difference], [row], "D", color=colour, markersize=7)
        axes.plot(points, [row + 0.27] * len(points), "o", color="none", markeredgecolor=colour, markersize=3.5)
        _label_row(axes, paper, row, f"{pair.smoothing} - {pair.baseline}", numbers, colour)
    axes.set_ylim(len(paired) - 0.5, -0.8 if paper.narrow else -0.6)
    axes.set_yticks([])
    axes.set_xlabel(f"difference in teacher accuracy, {'points' if paper.narrow else 'percentage points'}")
    _plain(axes, paper)
    axes.spines["left"].set_visible(False)
    return figure


def _label_row(axes: Axes, paper: Paper, row: int, name: str, numbers: str, colour: str) -> None:
    """Name and numbers on both sides of a row, or above it on a narrow page."""
    name, numbers = name.replace(" - ", " \N{MINUS SIGN} "), numbers.replace("-", "\N{MINUS SIGN}")
    sides = ((0, (-8, 0), name, "right", colour), (1, (8, 0), numbers, "left", paper.ink))
    above = ((0, (0, 13), f"{name}  {numbers}", "left", colour),)
    box, frame = {"facecolor": paper.ground, "edgecolor": "none", "pad": 1}, ("axes fraction", "data")
    for x, shift, text, align, ink in above if paper.narrow else sides:
        axes.annotate(
            text, (x, row), shift, frame, "offset points", ha=align, va="center", color=ink, size=9.5, bbox=box
        )


def age_map(ages: Ages, paper: Paper) -> Figure:
    """Which steps' students the final teacher consists of.

    Above: the share of units of each age, over all seeds, beside the law (1 - p) p^k. Below: the layers of the first
    seed's teacher; the area of a dot is the share of the layer's units of that age.
    """
    pooled = np.concatenate([values for tensors in ages.steps.values() for values in tensors.values()])
    axis = np.arange(max(int(pooled.max()), 1) + 1)
    layers = _layers(ages.steps[min(ages.steps)])
    height = 0.2 * max(4, min(len(layers), 40))
    figure = _figure(paper, 2.6 + height)
    law, stitched = figure.subplots(2, 1, sharex=True, height_ratios=[1.8, height])

    shares = np.bincount(pooled, minlength=len(axis)) / len(pooled)
    law.bar(axis, shares, width=0.7, color=paper.accent, alpha=0.6)
    expected = (1 - ages.preserve_prob) * ages.preserve_prob**axis
    law.plot(axis, expected, "o-", color=paper.ink, markersize=3, linewidth=1)
    key = "bars: found\nline: the law (1 \N{MINUS SIGN} p) p\N{MODIFIER LETTER SMALL K}"
    law.text(0.98, 0.95, key, transform=law.transAxes, ha="right", va="top", color=paper.ink, fontsize=9)
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
