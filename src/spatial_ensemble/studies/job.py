"""One run of a study. Apart from compare, so that a worker imports only what a run needs."""

import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatial_ensemble.errors import UserError
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.run import CHECKPOINT, CONFIG, LOG, train


@dataclass(frozen=True)
class Job:
    """What a worker gets: a run's configuration and its folder."""

    config: Config
    out: Path

    def __str__(self) -> str:
        return f"{self.config.teacher.smoothing}, seed {self.config.run.seed}"


def run(job: Job, report: Callable[[int], None]) -> dict[str, Any]:
    """Train, going on from a checkpoint where there is one.

    Args:
        job: the run.
        report: called with the number of steps done.

    Returns:
        The run's entry in results.json.

    Raises:
        UserError: it failed; what is not the user's mistake has its traceback in the run's error.txt.
    """
    begun = any((job.out / name).exists() for name in (CHECKPOINT, CONFIG, LOG))
    try:
        result = train(job.config, job.out, resume=begun, progress=False, on_step=report)
    except (UserError, OSError):
        raise
    except Exception as error:
        job.out.mkdir(parents=True, exist_ok=True)
        (job.out / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise UserError(f"{type(error).__name__}: {error} (in full: {job.out / 'error.txt'})") from error
    return {
        "smoothing": job.config.teacher.smoothing,
        "seed": job.config.run.seed,
        "teacher_accuracy": result.teacher_accuracy,
        "student_accuracy": result.student_accuracy,
        "seconds": result.seconds,
        "history": [{name: _number(value) for name, value in row.items()} for row in result.history],
    }


def _number(value: float) -> float | None:
    """What JSON has no number for becomes null."""
    return value if math.isfinite(value) else None
