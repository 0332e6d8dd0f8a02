"""Which average should a teacher be? Many arms on matched seeds, appended to one table, one row a run.

python benchmarks/study.py run NAME [--seeds 1000:1032]   -> results/study.csv (what is missing)
python benchmarks/study.py report                         -> results/study.md, docs/figures/findings.png

NAME is one of STUDIES. Seeds below 1000 were used to choose arms; seeds from 1000 on test them.
"""

import argparse
import csv
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from common import machine, save

from spatial_ensemble.studies import statistics
from spatial_ensemble.studies.arms import parse
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.recipes import default
from spatial_ensemble.training.run import train

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "study.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "findings.png"
COLUMNS = ("study", "arm", "seed", "teacher", "student", "cpu_seconds", "commit", "torch", "hardware", "date")
MARGIN = 1.0  # percentage points within which two arms count as equivalent, fixed beforehand


@dataclass(frozen=True)
class Study:
    """Arms that differ in the teacher alone, on one configuration.

    Args:
        config: what all runs share.
        arms: NAME: FIELD=VALUE ..., as `spatial-ensemble compare --arm` takes them.
        pairs: arm minus arm, the differences of the report.
    """

    config: Config
    arms: dict[str, str]
    pairs: tuple[tuple[str, str], ...]


DIGITS = {
    "average .95": "smoothing=tma momentum=0.95",
    "average .975": "smoothing=tma momentum=0.975",
    "average .99": "smoothing=tma momentum=0.99",
    "STS(.95, .5)": "smoothing=sts momentum=0.95 preserve_prob=0.5",
    "STS(.98, .5)": "smoothing=sts momentum=0.98 preserve_prob=0.5",
    "matched to STS(.95, .5)": "smoothing=tma-matched momentum=0.95 preserve_prob=0.5",
    "matched to STS(.98, .5)": "smoothing=tma-matched momentum=0.98 preserve_prob=0.5",
    "average .99, buffers .9": "smoothing=tma momentum=0.99 buffer_momentum=0.9",
    "SE(.9)": "smoothing=se preserve_prob=0.9",
}
PAIRS = (
    ("average .95", "average .99"),
    ("STS(.95, .5)", "average .975"),
    ("STS(.98, .5)", "average .99"),
    ("STS(.95, .5)", "matched to STS(.95, .5)"),
    ("STS(.98, .5)", "matched to STS(.98, .5)"),
    ("average .99, buffers .9", "average .99"),
    ("SE(.9)", "average .95"),
)
STUDIES = {
    f"digits, {labels} labels": Study(default("fixmatch", "digits").replace(labels=labels), DIGITS, PAIRS)
    for labels in (10, 20, 40)
}


def run(name: str, seeds: range) -> None:
    """Train what the table lacks, seed by seed, so that every cut leaves matched seeds."""
    study = STUDIES[name]
    done = {(row["study"], row["arm"], int(row["seed"])) for row in read()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    for seed in seeds:
        for arm, settings in study.arms.items():
            if (name, arm, seed) in done:
                continue
            config = parse(f"{arm}: {settings}").configure(study.config, seed)
            start = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                result = train(config, Path(folder) / "run", progress=False)
            seconds = f"{time.process_time() - start:.1f}"
            accuracies = f"{result.teacher_accuracy:.4f}", f"{result.student_accuracy:.4f}"
            where = commit.strip(), torch.__version__, machine(), time.strftime("%Y-%m-%d")
            append(dict(zip(COLUMNS, (name, arm, seed, *accuracies, seconds, *where), strict=True)))


def append(row: dict[str, object]) -> None:
    new = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def read() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def report() -> None:
    """The table of every study, from its test seeds, and the figure."""
    rows = [row for row in read() if int(row["seed"]) >= 1000]
    lines: list[str] = []
    shown: dict[str, list[statistics.Pair]] = {}
    for name, study in STUDIES.items():
        by_arm = {
            arm: {int(r["seed"]): float(r["teacher"]) for r in rows if (r["study"], r["arm"]) == (name, arm)}
            for arm in study.arms
        }
        seeds = set.intersection(*(set(values) for values in by_arm.values()))
        if len(seeds) < 2:
            continue
        lines += [
            f"## FixMatch on {name}: {len(seeds)} seeds",
            "",
            "| arm | teacher % | 95 % interval |",
            "|---|---:|---|",
        ]
        for arm, values in by_arm.items():
            summary = statistics.mean_interval([values[seed] for seed in sorted(seeds)])
            assert summary is not None
            mean = sum(values[seed] for seed in seeds) / len(seeds)
            lines.append(f"| {arm} | {mean:.2f} | [{summary[0]:.2f}, {summary[1]:.2f}] |")
        lines += ["", "| difference | points | 95 % interval | for all together | shows |", "|---|---:|---|---|---|"]
        for ours, theirs in study.pairs:
            first, second = ({seed: by_arm[arm][seed] for seed in seeds} for arm in (ours, theirs))
            pair = statistics.pair(ours, theirs, first, second, pairs=len(study.pairs), margin=MARGIN, sequential=False)
            assert pair.ci95 is not None and pair.simultaneous_ci95 is not None
            single, together = (f"[{low:+.2f}, {high:+.2f}]" for low, high in (pair.ci95, pair.simultaneous_ci95))
            lines.append(
                f"| {ours} - {theirs} | {pair.mean_difference:+.2f} | {single} | {together} | {pair.conclusion} |"
            )
            shown.setdefault(name, []).append(pair)
        lines.append("")
    draw(shown)
    hours = sum(float(row["cpu_seconds"]) for row in read()) / 3600
    lines += [
        "Differences are paired over seeds that no choice was made on. The intervals of the fourth column hold for all "
        f"differences of a table together (Bonferroni); equivalent: within {MARGIN:g} point, by two one-sided tests "
        "with the same correction.",
        "",
        f"All {len(read())} runs, with commit, versions and hardware: [study.csv](study.csv), {hours:.1f} CPU hours.",
    ]
    save(
        RESULTS / "study.md",
        "Which average should a teacher be?",
        "python benchmarks/study.py report",
        "arms and configurations: benchmarks/study.py; rows of commit 85ca3b9 were made by an earlier script, not "
        "kept; `benchmarks/study.py run NAME` trains the same way, and three runs repeated gave the same accuracies",
        lines,
        ("torch", "torchvision", "lightning", "scikit-learn"),
    )


def draw(shown: dict[str, list[statistics.Pair]]) -> None:
    """The differences of every study with their simultaneous intervals, beside the margin of equivalence."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(shown), 1, figsize=(7, 0.6 + 2.6 * len(shown)), squeeze=False, sharex=True)
    for axis, (name, pairs) in zip(axes[:, 0], shown.items(), strict=True):
        axis.axvspan(-MARGIN, MARGIN, color="0.9", label=f"within {MARGIN:g} point")
        axis.axvline(0, color="0.5", linewidth=0.8)
        for height, pair in enumerate(reversed(pairs)):
            assert pair.simultaneous_ci95 is not None
            color = {"better": "C2", "worse": "C3", "equivalent": "C0", "open": "0.4"}[pair.conclusion]
            axis.plot(pair.simultaneous_ci95, (height, height), color=color, linewidth=2)
            axis.plot(pair.mean_difference, height, "o", color=color, markersize=5)
        axis.set_yticks(range(len(pairs)), [f"{p.smoothing}  -  {p.baseline}" for p in reversed(pairs)], fontsize=8)
        axis.set_title(f"FixMatch on {name}, {len(pairs[0].seeds)} seeds", fontsize=9, loc="left")
    axes[-1, 0].set_xlabel(
        "accuracy of the teacher, difference in percentage points (95 % for all together)", fontsize=8
    )
    figure.tight_layout()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("name", nargs="?", choices=STUDIES, help="the study to run")
    parser.add_argument("--seeds", default="1000:1064", help="FIRST:STOP")
    given = parser.parse_args()
    if given.command == "report":
        report()
        return
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, {machine()}")
    first, stop = map(int, given.seeds.split(":"))
    run(given.name, range(first, stop))


if __name__ == "__main__":
    main()
