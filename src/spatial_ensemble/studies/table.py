"""What a comparison shows on the terminal: bars while it runs, a table and a sentence at its end."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from spatial_ensemble import methods
from spatial_ensemble.studies.statistics import BASELINES, sentence


class Bars:
    """A bar for the whole study and one for each run in work, on standard error; silent when that is no terminal.

    Args:
        names: of the runs that are to be done, in the order of their numbers
        steps: of each run
        done: runs that were finished before
    """

    def __init__(self, names: Sequence[str], steps: int, done: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._before = steps * done
        self._total = self._progress.add_task(
            "all runs", total=steps * (done + len(names)), completed=self._before, start=True
        )
        self._runs = [self._progress.add_task(name, total=steps, visible=False, start=False) for name in names]
        self._steps = [0] * len(names)

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, run: int, step: int) -> None:
        """Run number `run` has done `step` steps."""
        if not self._steps[run]:
            self._progress.start_task(self._runs[run])
        self._steps[run] = step
        self._progress.update(self._runs[run], completed=step, visible=True)
        self._progress.update(self._total, completed=self._before + sum(self._steps))

    def finish(self, run: int, line: str) -> None:
        """Run number `run` is done; `line` says how it went, and stays above the bars."""
        self._progress.update(self._runs[run], visible=False)
        if not self._progress.disable:
            self._progress.console.print(line, highlight=False)


def table(results: dict[str, Any]) -> RenderableType:
    """The table of a study and the sentence on what it shows, for a rich console of 80 columns or more.

    Args:
        results: the content of results.json
    """
    grid = Table(box=box.SIMPLE_HEAD, title=title(results), title_justify="left", title_style="bold", pad_edge=False)
    grid.add_column("smoothing", style="bold", no_wrap=True, min_width=11)
    for name in ("teacher\n%", "student\n%", *(f"minus\n{baseline}" for baseline in BASELINES)):
        grid.add_column(name, justify="right")
    if any(entry["ci95"] for entry in results["summary"]):
        grid.caption, grid.caption_justify = "in brackets: 95 % intervals", "left"
    for row in rows(results):
        grid.add_row(*row)
    return Group(grid, Text(sentence(results["paired"])))


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row a smoothing: name, teacher accuracy, student accuracy, difference to each baseline; intervals below.

    Where one smoothing has run at fewer seeds than another, the name tells how many.
    """
    pairs = {(pair["smoothing"], pair["baseline"]): pair for pair in results["paired"]}
    unequal = len({entry["runs"] for entry in results["summary"]}) > 1
    lines = []
    for entry in results["summary"]:
        name = entry["smoothing"]
        students = [run["student_accuracy"] for run in results["runs"] if run["smoothing"] == name]
        teacher = f"{entry['mean']:.2f}{_interval(entry['ci95'])}"
        differences = [_difference(pairs.get((name, baseline))) for baseline in BASELINES]
        label = f"{name}\nseeds: {entry['runs']}" if unequal else name
        lines.append((label, teacher, f"{np.mean(students):.2f}", *differences))
    return lines


def _difference(pair: dict[str, Any] | None) -> str:
    return "" if pair is None else f"{pair['mean_difference']:+.2f}{_interval(pair['ci95'], '+')}"


def _interval(ends: Sequence[float] | None, sign: str = "") -> str:
    return "" if ends is None else f"\n[{ends[0]:{sign}.2f}, {ends[1]:{sign}.2f}]"


def title(results: dict[str, Any]) -> str:
    """What was compared, in one line."""
    config, seeds = results["config"], {run["seed"] for run in results["runs"]}
    labels = "" if config["labels"] is None else f", {config['labels']} labels"
    count = f"{len(seeds)} seed" + ("s" if len(seeds) > 1 else "")
    return f"{config['method']} on {config['data']}{labels}, {config['steps']} steps, {count}: {measure(config)}"


def measure(config: dict[str, Any]) -> str:
    """What is meant by accuracy: that of the method's own classifier, or of its backbone's neighbours."""
    return {"accuracy": "accuracy", "knn": "kNN accuracy"}[methods.get(config["method"]).headline]
