"""Draw docs/figures/mechanism.png: three teachers of one student, each unit coloured by the age of what it holds.

    python docs/figures/mechanism.py

All weights of the student at step k are k, so a teacher's weight is the mean of the steps that it is made of, and the
number of updates minus this is their mean age. The three rules have the same expected update rate.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from spatial_ensemble import Smoothing, Teacher, spatial_ensemble, spatial_temporal_smoothing, temporal_moving_average

FILE = Path(__file__).with_name("mechanism.png")
SIZES = (3, 5, 5, 3)
STEPS, OLDEST, SEED = 200, 12, 3
RULES = {
    "averaged": ("moving average", temporal_moving_average(0.8)),
    "stitched": ("Spatial Ensemble", spatial_ensemble(0.8)),
    "both": ("Spatial-Temporal", spatial_temporal_smoothing(momentum=0.5, preserve_prob=0.6)),
}


def ages(smoothing: Smoothing) -> list[list[float]]:
    """The mean age of what each neuron holds, layer by layer, in steps."""
    student = nn.Sequential(*(nn.Linear(*sizes, bias=False) for sizes in pairwise(SIZES)))
    teacher = Teacher(student, smoothing, unit="channel", seed=SEED)  # a neuron is a row of its layer's weight
    for step in range(STEPS):
        for weight in student.parameters():
            nn.init.constant_(weight, step)
        teacher.update(student)
    return [(STEPS - 1 - layer.weight[:, 0]).tolist() for layer in teacher.module]


def draw_network(axes: Axes, layers: list[list[float]], colour: ScalarMappable) -> None:
    """Neurons as discs, and the weights that lead into each in its colour."""
    places = [[(x, y - (size - 1) / 2) for y in range(size)] for x, size in enumerate(SIZES)]
    for (before, neurons), values in zip(pairwise(places), layers, strict=True):
        for (x, y), value in zip(neurons, values, strict=True):
            shade = colour.to_rgba(value)
            for left, height in before:
                axes.plot([left, x], [height, y], color=shade, linewidth=1.6, alpha=0.7, zorder=1)
            axes.scatter(x, y, s=330, color=[shade], edgecolors="white", linewidths=1.5, zorder=2)
    axes.scatter(*zip(*places[0], strict=True), s=90, color="#9aa3ad", edgecolors="white", linewidths=1.5, zorder=2)
    axes.margins(0.1, 0.06)
    axes.set_axis_off()


def figure() -> Figure:
    """The whole picture."""
    colour = ScalarMappable(Normalize(0, OLDEST), "viridis_r")
    whole = Figure(figsize=(7.2, 3.7), layout="constrained", facecolor="white")
    panels = whole.subplots(1, len(RULES))
    for axes, (title, (name, smoothing)) in zip(panels, RULES.items(), strict=True):
        draw_network(axes, ages(smoothing), colour)
        axes.set_title(f"{title}\n", fontsize=17, fontweight="bold")
        axes.text(0.5, 1.01, name, transform=axes.transAxes, ha="center", fontsize=12.5)
    bar = whole.colorbar(colour, ax=panels, location="bottom", fraction=0.07, aspect=45, pad=0.04)
    bar.set_ticks([0, OLDEST], labels=["new", f"{OLDEST} steps old or more"], fontsize=13)
    bar.ax.get_xticklabels()[0].set_ha("left")
    bar.ax.get_xticklabels()[1].set_ha("right")
    bar.outline.set_visible(False)
    return whole


def write(file: Path) -> None:
    """Write the picture as PNG, with few colours to keep the file small."""
    canvas = FigureCanvasAgg(figure())
    canvas.figure.set_dpi(150)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256).save(file, optimize=True)


if __name__ == "__main__":
    write(FILE)
