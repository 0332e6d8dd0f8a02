"""What the benchmark scripts share: turns in one run, and a report that says how it was measured."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from spatial_ensemble.studies.statistics import mean_interval


def medians(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each way on one thread, taken in turns so that a busy moment falls on all of them."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, run in ways.items():
            start = time.process_time()
            run()
            if turn:  # the first is for warming up
                seconds[way].append(time.process_time() - start)
    return {way: statistics.median(times) for way, times in seconds.items()}


def mean_and_interval(differences: Sequence[float]) -> str:
    """The mean of paired differences in points, and what its interval says."""
    mean, interval = f"{statistics.mean(differences):+.2f} points on average", mean_interval(differences)
    if interval is None:
        return f"{mean}, one seed"
    zero = ", which contains zero" if interval[0] <= 0 <= interval[1] else ""
    return f"{mean}, 95 % interval [{interval[0]:.2f}, {interval[1]:.2f}]{zero}"


def machine() -> str:
    """Processor, number of cores, and the GPU where there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    processor = names[0] if names else platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {os.cpu_count()} cores{gpu}"


def save(
    out: Path, title: str, command: str, configuration: str, lines: Sequence[str], packages: Sequence[str]
) -> None:
    """Write a report in Markdown: the measurement, and everything needed to repeat it."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = [
        f"- command: `{command}`",
        f"- configuration: {configuration}",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- hardware: {machine()}",
        f"- processes waiting for a core while it ran (load average): {os.getloadavg()[0]:.1f}",
        f"- date: {date.today()}",
    ]
    out.write_text("\n".join([f"# {title}", "", *lines, "", *about, ""]))
