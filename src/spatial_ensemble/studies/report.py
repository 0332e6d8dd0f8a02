"""report.html: a study as one self-contained file, for wide and narrow, light and dark screens."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from spatial_ensemble.studies import plots
from spatial_ensemble.studies.comparison import Comparison
from spatial_ensemble.studies.plots import DARK, LIGHT, NARROW, Ages, Paper
from spatial_ensemble.studies.wording import columns, findings, notes, rows, title
from spatial_ensemble.training.checkpoint import write_whole

Draw = Callable[[Paper], Figure]
TEMPLATE = Path(__file__).with_name("report.html")


def write_report(comparison: Comparison, ages: Ages | None, out: Path) -> None:
    """Write report.html and figures/*.png into the study's folder; `ages` are None if no arm preserves any units."""
    figures: dict[str, Draw] = {"accuracy": partial(plots.accuracy, comparison)}
    if comparison.paired:
        figures["differences"] = partial(plots.differences, comparison)
    if ages:
        figures["ages"] = partial(plots.age_map, ages)
    (out / "figures").mkdir(exist_ok=True)
    for name, draw in figures.items():
        write_whole(out / "figures" / f"{name}.png", partial(plots.png, draw(LIGHT)))
    text = html(comparison, figures, ages)
    write_whole(out / "report.html", lambda path: path.write_text(text, encoding="utf-8"))


def html(comparison: Comparison, figures: Mapping[str, Draw], ages: Ages | None = None) -> str:
    """The report as one HTML document, with any of the figures "accuracy", "differences" and "ages"."""
    words = {"measure": comparison.measure, "reference": comparison.baselines[0]}
    if ages:
        words |= {"arm": ages.arm, "unit": ages.unit, "p": f"{ages.preserve_prob:g}"}
    sections = [_section(name, figures[name], words) for name in _SECTIONS if name in figures]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title(comparison)),
        findings="".join(f"<p>{_typeset(line)}</p>" for line in findings(comparison)),
        table=_table(columns(comparison), rows(comparison)),
        notes=_typeset(notes(comparison)),
        sections="\n".join(sections),
        arms=_pairs({arm.name: arm.text for arm in comparison.arms}),
        configuration=_pairs(comparison.shared),
        versions=_pairs(comparison.versions),
    )


_SECTIONS = {
    "differences": (
        "Paired differences",
        "The diamond is the mean over the seeds, the bar its 95 % interval; each ring below is one seed, whose two "
        "runs have the same labels, initial weights, batches and augmentations. Where the bar crosses the line at "
        "zero, no difference is shown.",
    ),
    "accuracy": (
        "Accuracy while training",
        "The teacher's $measure on the test images: the line is the mean over the seeds, the band reaches from the "
        "lowest seed to the highest. The dotted line repeats the mean of $reference. Above each panel, the mean at the "
        "last step.",
    ),
    "ages": (
        "What the teacher is made of",
        "Above: the share of units (unit: $unit) of the final teacher of $arm that were last moved k steps before the "
        "end, over all seeds, beside the geometric law with p = $p. Below: the teacher of the first seed, layer by "
        "layer; the area of a dot is the share of the layer's units of that age. Arms of the same unit and p share "
        "these draws.",
    ),
}


def _section(name: str, draw: Draw, words: Mapping[str, str]) -> str:
    heading, caption = _SECTIONS[name]
    dark, narrow = "(prefers-color-scheme: dark)", "(max-width: 600px)"
    papers = {f"{dark} and {narrow}": replace(DARK, width=NARROW), dark: DARK, narrow: replace(LIGHT, width=NARROW)}
    sources = (f'<source media="{media}" srcset="{_image(draw(paper))}">' for media, paper in papers.items())
    return (
        f"<section><h2>{heading}</h2><figure><picture>{''.join(sources)}"
        f'<img src="{_image(draw(LIGHT))}" alt="{heading}: the numbers are in the table and in results.json">'
        f"</picture><figcaption>{escape(Template(caption).substitute(words))}</figcaption></figure></section>"
    )


def _image(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(plots.svg(figure).encode()).decode()


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """An HTML table; text after a line break in a cell is set small."""
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    for row in body:
        cells = zip(head, (re.sub("\n(.*)", r"<small>\1</small>", _typeset(text)) for text in row), strict=True)
        lines.append("".join(f'<td data-name="{escape(name)}">{cell}</td>' for name, cell in cells))
    return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"


def _pairs(entries: Mapping[str, object]) -> str:
    texts = {name: "none" if value is None else str(value) for name, value in entries.items()}
    return "<dl>" + "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in texts.items()) + "</dl>"


def _typeset(text: str) -> str:
    """Escaped HTML with a true minus sign and non-breaking spaces around it; hyphens in names stay."""
    text = text.replace(" - ", "\N{NBSP}\N{MINUS SIGN}\N{NBSP}")
    return escape(re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text))
