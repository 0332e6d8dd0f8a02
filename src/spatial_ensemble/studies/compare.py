"""Train every arm over matched seeds, and say what the differences show."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from rich.console import Console

from spatial_ensemble.data.sources.decode import cores
from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.options import flag
from spatial_ensemble.studies.arms import KNOWN, SMOOTHINGS, Arm, check_counts, resolve
from spatial_ensemble.studies.comparison import Comparison, Design
from spatial_ensemble.studies.job import Job, run
from spatial_ensemble.studies.plots import Ages
from spatial_ensemble.studies.pool import run_jobs
from spatial_ensemble.studies.report import write_report
from spatial_ensemble.studies.table import Bars, table
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.build import build_smoothing, restore
from spatial_ensemble.training.config import Config, TeacherConfig
from spatial_ensemble.training.prepare import check
from spatial_ensemble.training.run import CHECKPOINT, MAY_CHANGE

RESULTS = "results.json"
# Runs that are compared share their files, while a run that is resumed may find them elsewhere.
MAY_DIFFER = MAY_CHANGE - {"path", "init"}


def compare(
    config: Config,
    out: Path,
    *,
    seeds: int = 3,
    smoothings: Sequence[str] = SMOOTHINGS,
    arms: Sequence[Arm] = (),
    until: float | None = None,
    max_seeds: int | None = None,
    drop: bool = False,
    workers: int | None = None,
) -> Comparison:
    """Train `config` under each arm at several seeds; write results.json, report.html and the figures into `out`.

    The runs of one seed have the same labels, initial weights, batches and augmentations: they differ in their arm's
    settings alone. A second call with the same `out` does only what is missing, and an interrupted run continues from
    its checkpoint. Shows progress bars if standard error is a terminal, and prints a table at the end.

    Args:
        config: what the arms start from; the seeds are `config.run.seed`, `config.run.seed + 1`, ...
        out: a folder, created if missing.
        seeds: 1 or more; one shows nothing about a difference. With `until`, the seeds before the first look.
        smoothings: known arms: some of "tma", "tma-matched", "se", "se-matched", "sts" and "every".
        arms: others, by a name and settings of any field.
        until: add seeds until the interval of every difference is at most this many percentage points to each side;
            the intervals are then confidence sequences, which hold at every look and for all pairs together.
        max_seeds: with `until`, the greatest number of seeds; None: 64.
        drop: with `until`, add no seeds to an arm that is shown to be worse than another.
        workers: processes, one torch thread each; None: one a core on the CPU, one on a GPU.

    Returns:
        The content of results.json.

    Raises:
        UserError: `out` holds a study of another configuration (and stays as it is), an arm cannot be, or a run failed.
        KeyboardInterrupt: with a message that says what is kept.

    Example:
        >>> from spatial_ensemble.training.recipes import default
        >>> compare(default("fixmatch", "digits"), Path("comparison"), seeds=3)  # doctest: +SKIP
    """
    out = Path(out)
    check_counts(seeds, until, max_seeds, drop, workers)
    most = seeds if until is None else max(seeds, max_seeds or 64)
    asked = resolve(config, smoothings, arms)
    study = _open(out, config, asked, Design(until))
    first = config.run.seed
    seeds_and_arms = product(range(first, first + most), asked)
    jobs = [Job(arm.name, arm.configure(config, seed), _folder(out, arm.name, seed)) for seed, arm in seeds_and_arms]
    finished = {run.key for run in study.runs}
    missing = [job for job in jobs if job.key not in finished]
    _check(study, jobs, missing)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    checkpoint.clear(out / RESULTS)

    def due() -> Iterator[Job]:  # reads `study` as it is when a worker becomes free
        for job in missing:
            if until is not None and job.config.run.seed >= first + seeds:
                active = [arm.name for arm in asked if not (drop and arm.name in study.beaten)]
                if study.settled(until, active):
                    return
                if job.arm not in active:
                    continue
            yield job

    if workers is None:
        workers = 1 if config.run.device != "cpu" and torch.cuda.is_available() else cores()
    try:
        with Bars(jobs, missing) as bars, closing(run_jobs(run, due(), workers)) as events:
            for event in events:
                if not event.result:
                    bars.show(event.job, event.value)
                    continue
                study = study.add(event.value)
                study.write(out / RESULTS)
                bars.finish(event.job, event.value)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {_kept(study, jobs, out, until)}") from None
    except UserError as error:
        raise UserError(f"{error}; {_kept(study, jobs, out, until)}") from None
    study.write(out / RESULTS)
    write_report(study, _ages(study, out), out)
    console = Console()
    console.print(table(study))
    console.print(f"\nreport: {out / 'report.html'}", highlight=False, soft_wrap=True)
    return study


def _folder(out: Path, arm: str, seed: int) -> Path:
    return out / "runs" / f"{arm}-seed{seed}"


def _open(out: Path, config: Config, asked: Sequence[Arm], design: Design) -> Comparison:
    """The study as far as `out` holds it, with the arms that are asked for.

    Raises:
        UserError: `out` is no folder, or holds something else than a study of this configuration and these arms.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    new = not (out / RESULTS).exists()
    saved = Comparison(config, (), (), design) if new else Comparison.read(out / RESULTS)
    _check_same(out, config.differences(saved.shared, MAY_DIFFER | {"smoothing", "seed"}))
    arms = {arm.name: arm for arm in saved.arms}
    for arm in asked:
        if arms.setdefault(arm.name, arm) != arm:
            other = f"arm {arm.name}: {arms[arm.name].text}, not {arm.text}"
            raise UserError(f"{out} holds another study ({other}): choose another --out")
    # The known arms first, in one order; then the others as they came.
    in_order = sorted(arms.values(), key=lambda arm: KNOWN.index(arm.name) if arm.known else len(KNOWN))
    kept = [run for run in saved.runs if (_folder(out, *run.key) / CHECKPOINT).exists()]
    # Seeds that were once added by what was seen need a confidence sequence for good.
    return Comparison(config, tuple(in_order), tuple(kept), saved.design if design.until is None else design)


def _check(study: Comparison, jobs: Sequence[Job], missing: Sequence[Job]) -> None:
    """Refuse what would fail, before anything is written or any worker started.

    Raises:
        UserError: a run began under another configuration or on other images, or `train` would refuse a configuration.
    """
    for job in missing:
        if job.begun:  # interrupted before it entered results.json
            saved = checkpoint.load(job.out / CHECKPOINT)["config"]
            _check_same(job.out, job.config.differences(saved, MAY_DIFFER | {"network"}))
    if not missing:
        return
    # Arms that differ in the teacher alone need one check together.
    same = TeacherConfig()
    distinct = {str(replace(job.config.replace(seed=0), teacher=same)): job.config for job in reversed(missing)}
    data = [check(config) for config in distinct.values()][-1]
    if not data["classes"]:
        images = study.config.images.path
        raise UserError(f"no image in {images} has a label to compare by: put some into class folders")
    begun = next((job for job in jobs if job.begun), None)
    if begun is not None and checkpoint.load(begun.out / CHECKPOINT)["data"] != data:
        where = begun.out.parents[1]
        raise UserError(f"the images have changed since the study in {where} began: choose another --out")


def _check_same(where: Path, differences: Mapping[str, tuple[object, object]]) -> None:
    for name, (before, now) in differences.items():
        raise UserError(f"{where} holds another study ({flag(name)} {before}, not {now}): choose another --out")


def _kept(study: Comparison, jobs: Sequence[Job], out: Path, until: float | None) -> str:
    done = len({run.key for run in study.runs} & {job.key for job in jobs})
    total = f"{'' if until is None else 'at most '}{len(jobs)}"
    return f"{done} of {total} runs are finished and kept in {out}, the same command continues from there"


def _ages(study: Comparison, out: Path) -> Ages | None:
    """The ages of the units of the first arm that preserves any, in its final teachers."""
    for arm in study.arms:
        config = arm.configure(study.config, 0)
        seeds = [run.seed for run in study.runs if run.smoothing == arm.name]
        if seeds and build_smoothing(config).preserve_prob:
            steps = {}
            for seed in seeds:
                teacher = restore(_folder(out, arm.name, seed) / CHECKPOINT)[-1]
                ages, names = teacher.age(), [name for name, _ in teacher.module.named_parameters()]
                steps[seed] = {name: ages[name].reshape(-1).numpy() for name in names if name in ages}
            return Ages(arm.name, config.teacher.preserve_prob, config.teacher.unit, steps)
    return None
