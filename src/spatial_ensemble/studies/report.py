"""report.html: a study in one file that needs no network, on a desk or a phone, in light or dark."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure

from spatial_ensemble.studies import plots
from spatial_ensemble.studies.plots import DARK, LIGHT, NARROW, Ages, Paper
from spatial_ensemble.studies.statistics import BASELINES, sentence
from spatial_ensemble.studies.table import measure, rows, title
from spatial_ensemble.training.checkpoint import write_whole

Draw = Callable[[Paper], Figure]
TEMPLATE = Path(__file__).with_name("report.html")


def write_report(results: dict[str, Any], ages: Ages, out: Path) -> None:
    """Write report.html and its figures as PNG into `out`.

    Args:
        results: the content of results.json.
        ages: seed -> tensor -> age of each of its units, in steps; empty where no smoothing preserves anything.
        out: the study's folder; the figures go into its `figures`.
    """
    figures: dict[str, Draw] = {"accuracy": lambda paper: plots.accuracy(results, paper)}
    if results["paired"]:
        figures["differences"] = lambda paper: plots.differences(results, paper)
    if ages:
        figures["ages"] = lambda paper: plots.age_map(ages, results["config"]["preserve_prob"], paper)
    (out / "figures").mkdir(exist_ok=True)
    for name, draw in figures.items():
        write_whole(out / "figures" / f"{name}.png", partial(plots.png, draw(LIGHT)))
    text = html(results, figures)
    write_whole(out / "report.html", lambda path: path.write_text(text, encoding="utf-8"))


def html(results: dict[str, Any], figures: Mapping[str, Draw]) -> str:
    """The report as one HTML document.

    Args:
        results: the content of results.json.
        figures: any of "accuracy", "differences" and "ages", with the function that draws it.
    """
    sections = [_section(name, figures[name], results) for name in _SECTIONS if name in figures]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title(results)),
        sentence=escape(_typeset(sentence(results["paired"]))),
        table=_table(["smoothing", "teacher %", "student %", *(f"minus {name}" for name in BASELINES)], rows(results)),
        notes=escape(_typeset(_notes(results))),
        sections="\n".join(sections),
        configuration=_pairs(results["config"]),
        versions=_pairs(results["versions"]),
    )


_SECTIONS = {
    "differences": (
        "Paired differences",
        "A ring is one seed, whose two runs have the same labels, initial weights, batches and augmentations; the "
        "diamond is the mean over the seeds, the bar its 95 % interval. Where the bar crosses the line at zero, no "
        "difference is shown.",
    ),
    "accuracy": (
        "Accuracy while training",
        "The teacher's $measure on the test images: the line is the mean over the seeds, the band reaches from the "
        "lowest seed to the highest. The dotted line repeats the mean of tma. Above each panel, the mean at the last "
        "step.",
    ),
    "ages": (
        "What the teacher is stitched from",
        "Above: the share of the final teacher's units (unit: $unit) that were last moved k steps before the end, over "
        "all seeds, beside the geometric law with p = $p. Below: the teacher of the first seed, layer by layer; the "
        "area of a dot is the share of the layer's units of that age. se took over the student of that step, sts "
        "averaged it in; both share these draws.",
    ),
}


def _section(name: str, draw: Draw, results: dict[str, Any]) -> str:
    config = results["config"]
    heading, caption = _SECTIONS[name]
    caption = Template(caption).substitute(measure=measure(config), unit=config["unit"], p=config["preserve_prob"])
    return (
        f"<section><h2>{heading}</h2><figure><picture>{_sources(draw)}"
        f'<img src="{_image(draw(LIGHT))}" alt="{heading}: the numbers are in the table and in results.json">'
        f"</picture><figcaption>{escape(caption)}</figcaption></figure></section>"
    )


def _sources(draw: Draw) -> str:
    dark, narrow = "(prefers-color-scheme: dark)", "(max-width: 600px)"
    wanted = {
        f"{dark} and {narrow}": replace(DARK, width=NARROW),
        dark: DARK,
        narrow: replace(LIGHT, width=NARROW),
    }
    return "".join(f'<source media="{media}" srcset="{_image(draw(paper))}">' for media, paper in wanted.items())


def _image(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(plots.svg(figure).encode()).decode()


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """An HTML table; what follows a line break in a cell is set small below it."""
    lines = ["<table>", "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for row in body:
        cells = [f'<td data-name="{escape(name)}">{_cell(text)}</td>' for name, text in zip(head, row, strict=True)]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _cell(text: str) -> str:
    first, *rest = escape(_typeset(text)).split("\n")
    return first + "".join(f"<small>{line}</small>" for line in rest)


def _pairs(entries: Mapping[str, object]) -> str:
    lines = (
        f"<dt>{escape(name)}</dt><dd>{escape('none' if value is None else str(value))}</dd>"
        for name, value in entries.items()
    )
    return "<dl>" + "\n".join(lines) + "</dl>"


def _typeset(text: str) -> str:
    """A true minus sign, kept on one line with what it joins; hyphens in names stay."""
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text.replace(" - ", "\N{NBSP}\N{MINUS SIGN}\N{NBSP}"))


def _notes(results: dict[str, Any]) -> str:
    count = len(results["paired"])
    matched = (
        "tma-matched is the moving average that is as fast as sts on average, of momentum 1 - (1 - p)(1 - m), and m "
        "for averaged buffers."
    )
    if all(pair["ci95"] is None for pair in results["paired"]):
        return matched
    return (
        "In brackets: 95 % intervals by Student's t over the seeds, those of a difference over the seeds' paired "
        f"differences, in percentage points; not corrected for the {count} comparisons. {matched}"
    )
