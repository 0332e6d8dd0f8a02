"""The report and the table: what they must say, and that they need nothing from outside."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from synthetic import synthetic_ages, synthetic_comparison

from spatial_ensemble.studies import plots
from spatial_ensemble.studies.comparison import Comparison
from spatial_ensemble.studies.report import html, write_report
from spatial_ensemble.studies.table import table
from spatial_ensemble.studies.wording import findings


def text_of(figure: Figure) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", plots.svg(figure))


def printed(comparison: Comparison) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(comparison))
    return console.export_text()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("study")
    write_report(synthetic_comparison(), synthetic_ages(), out)
    return out, (out / "report.html").read_text(encoding="utf-8")


def test_report_is_one_file_that_asks_for_nothing(report: tuple[Path, str]) -> None:
    _, page = report
    shell = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", shell)
    images = [base64.b64decode(found).decode() for found in re.findall(r"base64,([A-Za-z0-9+/=]+)", page)]
    assert len(images) == 12  # three figures, each for light and dark, wide and narrow
    for image in images:
        assert not re.search(r'(href|src)="(?!#)', image)


def test_report_says_what_was_done_and_what_it_shows(report: tuple[Path, str]) -> None:
    _, page = report
    comparison = synthetic_comparison()
    plain = page.replace("\N{NBSP}\N{MINUS SIGN}\N{NBSP}", " - ")
    assert "fixmatch on digits, 20 labels, 400 steps, 3 seeds: accuracy" in plain
    for line in findings(comparison):
        assert f"<p>{line}</p>" in plain
    for entry in comparison.summary:
        assert f"{entry.mean:.2f}" in page
    for name, value in (comparison.shared | dict(comparison.versions)).items():
        assert f"<dt>{name}</dt><dd>{'none' if value is None else value}</dd>" in page
    assert "<dt>sts</dt><dd>smoothing sts</dd>" in page


def test_report_is_the_same_text_twice(report: tuple[Path, str], tmp_path: Path) -> None:
    write_report(synthetic_comparison(), synthetic_ages(), tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report[1]


def test_figures_are_written_as_png(report: tuple[Path, str]) -> None:
    out, _ = report
    for name in ("accuracy", "differences", "ages"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_markup_in_names_is_shown_not_obeyed() -> None:
    comparison = synthetic_comparison()
    named = replace(comparison, config=comparison.config.replace(path="<b>$HOME & more</b>"))
    assert "<dd>&lt;b&gt;$HOME &amp; more&lt;/b&gt;</dd>" in html(named, {})


def test_one_seed_gives_a_report_without_intervals(tmp_path: Path) -> None:
    comparison = synthetic_comparison(seeds=1)
    write_report(comparison, synthetic_ages(1), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "One seed shows nothing" in page and "In brackets" not in page and "[" not in printed(comparison)


def test_one_smoothing_alone_has_no_differences_to_show(tmp_path: Path) -> None:
    comparison = synthetic_comparison()
    write_report(replace(comparison, runs=comparison.runs[:3]), None, tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["accuracy.png"]


def test_table_fits_a_terminal_of_80_columns_whole() -> None:
    comparison = synthetic_comparison()
    text = printed(comparison)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text and "tma-matched" in text
    for pair in comparison.paired:
        assert pair.ci95 is not None
        assert f"{pair.mean_difference:+.2f}" in text
        assert f"[{pair.ci95[0]:+.2f}, {pair.ci95[1]:+.2f}]" in text
    for line in findings(comparison):
        assert " ".join(line.split()) in " ".join(text.split())


def test_each_smoothing_keeps_its_colour_and_its_name_in_every_figure() -> None:
    comparison = synthetic_comparison()
    for paper in (plots.LIGHT, plots.DARK):
        for draw in (plots.accuracy, plots.differences):
            drawn = plots.svg(draw(comparison, paper))
            for name in ("tma-matched", "se", "sts"):
                assert paper.smoothing[name] in drawn
        titles = [text for text in text_of(plots.accuracy(comparison, paper))]
        assert {"tma", "tma-matched", "se", "sts"} <= set(titles)


def test_differences_show_every_seed_and_its_mean() -> None:
    comparison = synthetic_comparison()
    (axes,) = plots.differences(comparison, plots.LIGHT).axes
    rings = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert [len(points) for points in rings] == [3] * 5
    assert np.allclose([np.mean(points) for points in rings], means)
    assert np.allclose(means, [pair.mean_difference for pair in comparison.paired])


def test_age_map_is_held_against_the_geometric_law() -> None:
    law, stitched = plots.age_map(synthetic_ages(), plots.LIGHT).axes
    (line,) = law.lines
    ages = line.get_xdata()
    assert np.allclose(line.get_ydata(), 0.5 * 0.5**ages)
    assert sum(bar.get_height() for bar in law.patches) == pytest.approx(1.0)
    assert [label.get_text() for label in stitched.get_yticklabels()] == [f"layers.{i}" for i in range(5)]
    assert len(stitched.collections) == 5  # a row of dots a layer
