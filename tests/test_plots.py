"""The public figures: what they draw is what the teacher says; and the picture of the mechanism is the script's."""

import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageChops, ImageStat
from torch import nn

from spatial_ensemble import Teacher, cosine, distance, plots, spatial_ensemble, temporal_moving_average

FIGURES = Path(__file__).parents[1] / "docs" / "figures"


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def teacher(student) -> Teacher:
    teacher = Teacher(student, spatial_ensemble(0.7), unit="channel")
    for _ in range(20):
        with torch.no_grad():
            for tensor in student.parameters():
                tensor.add_(torch.randn_like(tensor))
        teacher.update(student)
    return teacher


def test_the_age_map_has_a_row_a_tensor_in_the_networks_order_and_a_cell_a_unit(teacher):
    axes = plots.age_map(teacher)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    ages = teacher.age()
    for name, row in zip(names, axes.get_images(), strict=True):
        assert row.get_array().tolist() == [ages[name].tolist()]
        assert (row.norm.vmin, row.norm.vmax) == (0, max(int(age.max()) for age in ages.values()))


def test_of_many_units_evenly_spaced_ones_are_shown_and_of_many_rows_every_nth_is_named():
    student = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(90)), nn.Linear(1, 5000, bias=False))
    teacher = Teacher(student, spatial_ensemble(0.5), unit="channel")
    for _ in range(3):
        teacher.update(student)
    axes = plots.age_map(teacher)
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{i}.weight" for i in range(0, 91, 3)]
    assert axes.get_images()[-1].get_array().tolist() == [teacher.age()["90.weight"][::3].tolist()]


def test_distances_are_the_root_mean_square_of_a_layer_buffers_included(teacher, student):
    axes = plots.distances(teacher, student)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "3"]
    found = distance(teacher, student)
    for layer, bar in zip(("0", "1", "3"), axes.patches, strict=True):
        tensors = {n: t for n, t in student.state_dict().items() if n.startswith(f"{layer}.") and t.is_floating_point()}
        squares = sum(found[name] ** 2 for name in tensors)
        assert bar.get_width() == pytest.approx((squares / sum(t.numel() for t in tensors.values())) ** 0.5)
        assert bar.get_width() > 0


def test_half_lives_follow_the_schedules():
    rules = {"still": temporal_moving_average(0.99), "to 1": temporal_moving_average(cosine(0.9, 1.0, steps=2000))}
    axes = plots.half_lives(rules, steps=2000)
    for line, (name, rule) in zip(axes.get_lines(), rules.items(), strict=True):
        assert line.get_label() == name
        assert line.get_xdata()[-1] > 1990
        for step, value in zip(line.get_xdata(), line.get_ydata(), strict=True):
            assert value == rule.half_life(int(step))


def test_a_figure_can_be_drawn_into_given_axes_and_saved(teacher, student, tmp_path):
    figure = Figure()
    left, middle, right = figure.subplots(1, 3)
    assert plots.age_map(teacher, left) is left
    assert plots.distances(teacher, student, middle) is middle
    assert plots.half_lives({"se": teacher.smoothing}, 10, right) is right
    figure.savefig(tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size


def test_a_teacher_with_nothing_under_the_mask_has_an_empty_map():
    assert not plots.age_map(Teacher(nn.ReLU(), spatial_ensemble(0.5))).get_images()


def test_importing_it_imports_no_matplotlib():
    code = "import sys, spatial_ensemble.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_picture_of_the_mechanism_is_what_its_script_draws(tmp_path):
    script = runpy.run_path(str(FIGURES / "mechanism.py"))
    averaged, stitched, both = (
        [age for layer in script["ages"](rule) for age in layer] for _, rule in script["RULES"].values()
    )
    # Averaged units are all one blend of students; a stitched one is of one student; a unit of both lies between.
    assert averaged == pytest.approx([4.0] * len(averaged), abs=1e-3)
    assert all(age == int(age) for age in stitched)
    assert 0 < statistics.stdev(both) < statistics.stdev(stitched)
    rates = {(1 - p) * (1 - m) for m, p in (rule.at(0) for _, rule in script["RULES"].values())}
    assert max(rates) == pytest.approx(min(rates))  # all three are as fast

    script["write"](tmp_path / "mechanism.png")
    ours, drawn = (Image.open(file).convert("RGB") for file in (FIGURES / "mechanism.png", tmp_path / "mechanism.png"))
    assert (FIGURES / "mechanism.png").stat().st_size < 150_000
    assert max(ImageStat.Stat(ImageChops.difference(ours, drawn)).mean) < 2  # fonts differ between versions
