"""Train with each smoothing over matched seeds, and say what the differences show."""

import json
import os
import platform
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from spatial_ensemble.errors import UserError
from spatial_ensemble.studies.job import Job, run
from spatial_ensemble.studies.pool import run_jobs
from spatial_ensemble.studies.report import write_report
from spatial_ensemble.studies.statistics import paired_differences, summarise
from spatial_ensemble.studies.table import Bars, table
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.build import restore
from spatial_ensemble.training.config import Config, SmoothingName, flag
from spatial_ensemble.training.prepare import check
from spatial_ensemble.training.run import CHECKPOINT, MAY_CHANGE

SMOOTHINGS: tuple[SmoothingName, ...] = ("tma", "tma-matched", "se", "sts")
PACKAGES = ("spatial-ensemble", "torch", "torchvision", "lightning", "numpy", "scipy", "scikit-learn")
RESULTS = "results.json"
# Runs that are compared share their files, while a run that is resumed may find them elsewhere.
MAY_DIFFER = MAY_CHANGE - {"path", "init"}

Results = dict[str, Any]


def compare(
    config: Config,
    out: Path,
    *,
    seeds: int = 3,
    smoothings: Sequence[SmoothingName] = SMOOTHINGS,
    workers: int | None = None,
) -> Results:
    """Train `config` with each smoothing at several seeds; write results.json, report.html and the figures into `out`.

    The runs of one seed see the same labels, initial weights, batches and augmentations: they differ in the smoothing
    alone. A second call with the same `out` does only what is missing, and a run that was interrupted goes on from its
    checkpoint. Shows bars where standard error is a terminal, and prints a table at the end.

    Args:
        config: everything but the smoothing; the seeds are `config.run.seed`, `config.run.seed + 1`, ...
        out: a folder, made where there is none.
        seeds: how many, 1 or more; one shows nothing about a difference.
        smoothings: some of "tma", "tma-matched", "se", "sts".
        workers: processes at a time, one torch thread each; none is one a core on the CPU, and one in all on a GPU.

    Returns:
        The content of results.json.

    Raises:
        UserError: `out` holds a study of another configuration (and stays as it is), or a run failed.
        KeyboardInterrupt: with a message that says what is kept.

    Example:
        >>> from spatial_ensemble.training.recipes import default
        >>> compare(default("fixmatch", "digits"), Path("comparison"), seeds=3)  # doctest: +SKIP
    """
    for name, value in (("seeds", seeds), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    out = Path(out)
    runs = _finished(out, config)
    jobs = [
        Job(
            config.replace(smoothing=smoothing, seed=config.run.seed + k),
            out / "runs" / f"{smoothing}-seed{config.run.seed + k}",
        )
        for k in range(seeds)
        for smoothing in dict.fromkeys(smoothings)
    ]
    missing = [job for job in jobs if (job.config.teacher.smoothing, job.config.run.seed) not in runs]
    for job in missing:
        _check_started(job)
    if missing:
        data = check(config)  # here, before anything is written or any worker started
        if not data["classes"]:
            raise UserError(f"no image in {config.images.path} has a label to compare by: put some into class folders")
        begun = next((job.out / CHECKPOINT for job in jobs if (job.out / CHECKPOINT).exists()), None)
        if begun is not None and checkpoint.load(begun)["data"] != data:
            raise UserError(f"the images have changed since the study in {out} began: choose another --out")
    (out / "runs").mkdir(parents=True, exist_ok=True)
    checkpoint.clear(out / RESULTS)
    try:
        with (
            Bars([str(job) for job in missing], config.run.steps, len(jobs) - len(missing)) as bars,
            closing(run_jobs(run, missing, workers or _default_workers(config))) as events,
        ):
            for event in events:
                if not event.result:
                    bars.show(event.job, event.value)
                    continue
                done = event.value
                runs[done["smoothing"], done["seed"]] = done
                _write(out, config, runs)
                line = f"{missing[event.job]}: teacher {done['teacher_accuracy']:.2f} %, {done['seconds']:.0f} s"
                bars.finish(event.job, line)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {_kept(out, runs, jobs)}") from None
    except UserError as error:
        raise UserError(f"{error}; {_kept(out, runs, jobs)}") from None
    results = _write(out, config, runs)
    write_report(results, _ages(out, results), out)
    console = Console()
    console.print(table(results))
    console.print(f"\nreport: {out / 'report.html'}", highlight=False, soft_wrap=True)
    return results


def _default_workers(config: Config) -> int:
    if config.run.device == "cuda" or (config.run.device == "auto" and torch.cuda.is_available()):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _study(config: Config) -> dict[str, Any]:
    """What all runs of a study share, as JSON gives it back."""
    shared = {name: value for name, value in config.to_dict().items() if name not in ("smoothing", "seed")}
    return cast(dict[str, Any], json.loads(json.dumps(shared)))


def _finished(out: Path, config: Config) -> dict[tuple[str, int], dict[str, Any]]:
    """The runs that `out` holds already, by smoothing and seed.

    Raises:
        UserError: `out` is no folder, or holds something else than a study of this configuration.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    path = out / RESULTS
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        differences = config.differences(content["config"], MAY_DIFFER | {"smoothing", "seed"})
        runs = {(run["smoothing"], run["seed"]): run for run in content["runs"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} was not written by compare: choose another --out") from None
    for name, (before, now) in differences.items():
        raise _another(out, name, before, now)
    return {key: run for key, run in runs.items() if (out / "runs" / f"{key[0]}-seed{key[1]}" / CHECKPOINT).exists()}


def _check_started(job: Job) -> None:
    """A run that was interrupted before it entered results.json is of the same configuration, too."""
    if not (job.out / CHECKPOINT).exists():
        return
    saved = checkpoint.load(job.out / CHECKPOINT)["config"]
    differences = job.config.differences(saved, MAY_DIFFER | {"network"})
    for name, (before, now) in differences.items():
        raise _another(job.out, name, before, now)


def _another(where: Path, name: str, before: object, now: object) -> UserError:
    return UserError(f"{where} holds another study ({flag(name)} {before}, not {now}): choose another --out")


def _write(out: Path, config: Config, runs: dict[tuple[str, int], dict[str, Any]]) -> Results:
    """Put results.json in place whole."""
    entries = [
        runs[key] for key in sorted(runs, key=lambda key: (SMOOTHINGS.index(cast(SmoothingName, key[0])), key[1]))
    ]
    results = {
        "config": _study(config),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "runs": entries,
        "summary": summarise(entries),
        "paired": paired_differences(entries),
    }
    text = json.dumps(results, indent=1, allow_nan=False)
    checkpoint.write_whole(out / RESULTS, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return results


def _kept(out: Path, runs: dict[tuple[str, int], dict[str, Any]], jobs: Sequence[Job]) -> str:
    done = sum((job.config.teacher.smoothing, job.config.run.seed) in runs for job in jobs)
    return f"{done} of {len(jobs)} runs are finished and kept in {out}, the same command goes on from there"


def _ages(out: Path, results: Results) -> dict[int, dict[str, Any]]:
    """By seed and tensor: how many steps ago each unit of the final teacher was last moved.

    SE and STS of one seed share their draws, and so their ages; without either there is nothing to show.
    """
    ages = {}
    for entry in results["runs"]:
        if entry["smoothing"] in ("se", "sts") and entry["seed"] not in ages:
            path = out / "runs" / f"{entry['smoothing']}-seed{entry['seed']}" / CHECKPOINT
            _, _, teacher = restore(checkpoint.load(path), path)
            found = teacher.age()
            in_order = [name for name, _ in teacher.module.named_parameters() if name in found]
            ages[entry["seed"]] = {name: found[name].reshape(-1).numpy() for name in in_order}
    return ages
