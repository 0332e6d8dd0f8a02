"""One run of a study. Apart from compare, so that a worker imports only what a run needs."""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatial_ensemble.errors import UserError
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.run import CHECKPOINT, CONFIG, LOG, train


@dataclass(frozen=True)
class Job:
    """A run to be done: its arm's name, its configuration and its folder."""

    arm: str
    config: Config
    out: Path

    @property
    def key(self) -> tuple[str, int]:
        return self.arm, self.config.run.seed

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return (self.out / CHECKPOINT).exists()

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.config.run.seed}"


@dataclass(frozen=True)
class Run:
    """A finished run: the name of its arm, accuracies in per cent, and a row of history an evaluation."""

    smoothing: str
    seed: int
    teacher_accuracy: float
    student_accuracy: float
    seconds: float
    history: Sequence[Mapping[str, Any]]

    @property
    def key(self) -> tuple[str, int]:
        return self.smoothing, self.seed


def run(job: Job, report: Callable[[int], None]) -> Run:
    """Train, continuing from a checkpoint if there is one; `report` is called with the number of steps done.

    Raises:
        UserError: the run failed; the traceback of anything but a user's mistake is in the run's error.txt.
    """
    begun = any((job.out / name).exists() for name in (CHECKPOINT, CONFIG, LOG))
    try:
        result = train(job.config, job.out, resume=begun, progress=False, on_step=report)
    except (UserError, OSError):
        raise
    except Exception as error:
        job.out.mkdir(parents=True, exist_ok=True)
        (job.out / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise UserError(f"{type(error).__name__}: {error} (traceback: {job.out / 'error.txt'})") from error
    return Run(
        job.arm,
        job.config.run.seed,
        result.teacher_accuracy,
        result.student_accuracy,
        result.seconds,
        [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in result.history],
    )
