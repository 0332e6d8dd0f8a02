"""Logs of a run: log.csv, TensorBoard if it is installed, and a progress bar on a terminal."""

import csv
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from spatial_ensemble.training.checkpoint import write_whole

Row = dict[str, float]


def write_csv(path: Path, history: Sequence[Row]) -> None:
    """Write the history as a table, one row an evaluation; all of it each time, so that it agrees with the checkpoint
    that a run resumes from."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            names = dict.fromkeys(name for row in history for name in row)  # a metric may start later than others
            writer = csv.DictWriter(file, fieldnames=list(names) or ["step"])
            writer.writeheader()
            writer.writerows(history)

    write_whole(path, write)


@contextmanager
def tensorboard(folder: Path, first_step: int, wanted: bool) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row of the history to TensorBoard; it does nothing if not wanted or not installed.

    Events of an interrupted run from `first_step` on are dropped.
    """
    if not wanted or importlib.util.find_spec("tensorboard") is None:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=first_step) as writer:

        def write(row: Row) -> None:
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, int(row["step"]))
            writer.flush()

        yield write


@contextmanager
def progress_bar(start: int, steps: int, shown: bool) -> Iterator[Callable[[int, Row], None]]:
    """A function to call with the steps done and the latest row; silent unless standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("", total=steps, completed=start)

        def advance(done: int, row: Row) -> None:
            bar.update(task, completed=done, description=describe(row))

        yield advance


def describe(row: Row) -> str:
    """A row of the history on one line.

    Example:
        >>> describe({"step": 100, "teacher_accuracy": 97.25, "student_accuracy": 96.0, "loss": 0.125})
        'step 100: teacher 97.25 %, student 96.00 %, loss 0.125'
        >>> describe({"step": 100, "teacher_accuracy": math.nan, "student_accuracy": math.nan, "loss": 0.125})
        'step 100: loss 0.125'
    """
    if not row:
        return ""
    loss, teacher = f"loss {row.get('loss', math.nan):.4g}", row["teacher_accuracy"]
    accuracies = f"teacher {teacher:.2f} %, student {row['student_accuracy']:.2f} %"
    return f"step {row['step']:g}: {loss if math.isnan(teacher) else f'{accuracies}, {loss}'}"
