"""A study on the terminal: progress bars while it runs, and a table at its end."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from spatial_ensemble.studies.comparison import Comparison
from spatial_ensemble.studies.job import Job, Run
from spatial_ensemble.studies.wording import columns, findings, rows, title


class Bars:
    """A bar for the whole study and one for each run in progress, on standard error; silent if that is no terminal."""

    def __init__(self, jobs: Sequence[Job], missing: Sequence[Job]) -> None:
        console = Console(stderr=True)
        shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*shown, console=console, disable=not console.is_terminal)
        total, left = (sum(job.config.run.steps for job in some) for some in (jobs, missing))
        self._total = self._progress.add_task("all runs", total=total, completed=total - left)
        self._runs: dict[tuple[str, int], tuple[TaskID, int]] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, job: Job, step: int) -> None:
        """The job has done `step` steps."""
        if job.key not in self._runs:
            self._runs[job.key] = self._progress.add_task(str(job), total=job.config.run.steps), 0
        task, before = self._runs[job.key]
        self._runs[job.key] = task, step
        self._progress.update(task, completed=step)
        self._progress.advance(self._total, step - before)

    def finish(self, job: Job, run: Run) -> None:
        """The job is done; its result stays above the bars."""
        self.show(job, job.config.run.steps)
        self._progress.update(self._runs[job.key][0], visible=False)
        if not self._progress.disable:
            line = f"{job}: teacher {run.teacher_accuracy:.2f} %, {run.seconds:.0f} s"
            self._progress.console.print(line, highlight=False)


def table(comparison: Comparison) -> RenderableType:
    """The table of a study and its findings, for a console of 80 columns or more."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    heads = columns(comparison)
    kept = [i for i, head in enumerate(heads) if len(heads) <= 5 or head != "student %"]  # six do not fit
    grid.add_column(heads[0], style="bold", no_wrap=True, min_width=11)
    for i in kept[1:]:
        grid.add_column(heads[i].replace(" ", "\n"), justify="right")
    for row in rows(comparison):
        grid.add_row(*(row[i] for i in kept))
    lines = findings(comparison)
    if any(entry.ci95 for entry in comparison.summary):
        kind = "intervals" if comparison.design.until is None else "confidence sequences"
        lines = [f"in brackets: 95 % {kind}\n", *lines]
    return Group(Text(title(comparison), style="bold"), grid, *map(Text, lines))
