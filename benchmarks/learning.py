"""Do the methods learn? Each on real images, by a small network in few steps, by default on one processor core.

python benchmarks/learning.py METHOD --path DIR    -> results/learning_METHOD.md

METHOD is byol, moco or dino: nearest neighbours of the trained teacher's backbone against those of the same network
untrained; or fixmatch or mean_teacher: accuracy with 250 labels against learning from these labels alone. DIR holds
CIFAR-10 as train/<class>/*.png and test/<class>/*.png. Runs are kept (--runs), and a second call goes on with them.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from common import mean_and_interval, save
from torch import Tensor, nn

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.data.sources import load
from spatial_ensemble.methods.base import Method, Student, classifier
from spatial_ensemble.smoothing import Teacher
from spatial_ensemble.training.build import build_method, describe
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.evaluate import measure
from spatial_ensemble.training.recipes import default
from spatial_ensemble.training.run import Result, train

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "lightly", "lightning")
LABELS = 250
NETWORK = "resnet10-small"
STEPS = {"byol": 7000, "moco": 4000, "dino": 7000, "fixmatch": 2500, "mean_teacher": 2500}
SUPERVISED = "learning.Supervised"  # found because this file's folder is the first that Python looks into


class Supervised(Method):
    """The baseline of the semi-supervised methods: their labelled views and loss, and no other image.

    Args:
        backbone: images to features, with `num_features`.
        num_classes: number of classes.
        options: none.
    """

    labelled_views = ("weak",)
    headline = "accuracy"

    def __init__(self, backbone: nn.Module, num_classes: int, options: object) -> None:
        super().__init__()
        self.student = Student(backbone, classifier(backbone, num_classes))

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(self.student(batch.labelled[0]).float(), batch.labels), {}


def configuration(method: str, path: str, network: str, seed: int, steps: int, options: dict[str, object]) -> Config:
    """The method's default with a length of its own; evaluated once, because that takes minutes of the core."""
    semi = method in ("fixmatch", "mean_teacher")
    short = default(method, "folder")
    if method == "mean_teacher":
        options = {"ramp_up_steps": 2 * steps // 5} | options
    return short.replace(
        path=path,
        network=network,
        labels=LABELS if semi else None,
        warmup_steps=0 if semi else steps // 20,
        seed=seed,
        steps=steps,
        precision="bf16-mixed",
        device="cpu",
        eval_every=steps,
        checkpoint_every=250,
        **options,
    )


def run(config: Config, out: Path) -> tuple[Result, float]:
    """Train, or go on with what `out` holds: the result, and the processor's minutes over all parts of the run."""
    kept = out / "processor_seconds"
    before, start = float(kept.read_text()) if kept.exists() else 0.0, time.process_time()

    def note(step: int) -> None:
        if step % config.run.checkpoint_every == 0 or step == config.run.steps:
            kept.write_text(str(before + time.process_time() - start))

    result = train(config, out, resume=(out / "config.yaml").exists(), on_step=note)
    return result, float(kept.read_text()) / 60


def untrained(config: Config) -> float:
    """The nearest neighbours' accuracy of the network that the run starts with, per cent."""
    data = load(config.images.data, config.images.path)
    return measure(build_method(config, describe(data)).student, data, "knn")


def progress(result: Result) -> str:
    """The evaluations of a run on one line: the teacher's accuracy, and the means logged since the one before."""
    rows = []
    for row in result.history:
        rest = ", ".join(
            f"{name} {value:.3g}" for name, value in row.items() if "accuracy" not in name and name != "step"
        )
        rows.append(f"step {row['step']}: {row['teacher_accuracy']:.2f} % ({rest})")
    return "; ".join(rows)


def report(
    method: str,
    path: str,
    network: str,
    seeds: list[int],
    steps: int,
    options: dict[str, object],
    runs: Path,
    out: Path,
) -> None:
    semi = method in ("fixmatch", "mean_teacher")
    base = "supervised" if semi else "untrained"
    lines = [
        f"| seed | {base} % | teacher % | student % | teacher minus {base} | minutes (wall) | minutes (processor) |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    gains, courses = [], []
    for seed in seeds:
        config = configuration(method, path, network, seed, steps, options)
        result, minutes = run(config, runs / f"{method}-seed{seed}")
        walls, cores = f"{result.seconds / 60:.1f}", f"{minutes:.1f}"
        courses.append(f"- {method}, seed {seed}: {progress(result)}")
        if semi:
            alone, more = run(config.replace(method=SUPERVISED), runs / f"supervised-{steps}-seed{seed}")
            reference = alone.teacher_accuracy
            walls, cores = f"{walls} + {alone.seconds / 60:.1f}", f"{cores} + {more:.1f}"
            courses.append(f"- supervised, seed {seed}: {progress(alone)}")
        else:
            reference = untrained(config)
        gains.append(result.teacher_accuracy - reference)
        accuracies = f"{reference:.2f} | {result.teacher_accuracy:.2f} | {result.student_accuracy:.2f}"
        lines.append(f"| {seed} | {accuracies} | {gains[-1]:+.2f} | {walls} | {cores} |")
    lines += ["", f"Teacher minus {base}: {mean_and_interval(gains)}.", "", *courses]
    what = (
        f"accuracy of the teacher with {LABELS} labels; supervised: the same labels, weak views, network, optimizer, "
        "smoothing, steps and seed"
        if semi
        else "kNN accuracy (k 200, temperature 0.1, all training images as bank, all test images) of the backbone"
    )
    about = ", ".join(
        f"{name} {value}"
        for name, value in config.to_dict().items()
        if value is not None and name not in ("path", "seed")
    )
    command = f"python benchmarks/learning.py {method} --path DIR --seeds {' '.join(map(str, seeds))} --steps {steps}"
    title = f"Does {method} learn"
    if network != NETWORK:
        command, title = f"{command} --network {network}", f"Does {method} teach {network}"
    if (threads := torch.get_num_threads()) > 1:
        command += f" --threads {threads}"
    if steps != STEPS[method]:
        title += f" in {steps} steps"
    if options:
        chosen = " ".join(f"{name}={value}" for name, value in options.items())
        command, title = f"{command} --set {chosen}", f"{title} with {chosen}"
    save(
        out,
        f"{title}? CIFAR-10",
        command,
        f"seeds {seeds}, {what}; {threads} thread(s); {about}",
        lines,
        PACKAGES,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=sorted(STEPS))
    parser.add_argument("--path", required=True, help="CIFAR-10 as folders of images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help=f"optimizer steps; by default {STEPS}")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="options of the method, instead of its default's"
    )
    parser.add_argument("--network", default=NETWORK, help="name of the backbone")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--out", type=Path, help="the file to write")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where runs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    method = arguments.method
    options = {name: yaml.safe_load(value) for name, value in (pair.split("=") for pair in arguments.set)}
    report(
        method,
        arguments.path,
        arguments.network,
        arguments.seeds,
        arguments.steps or STEPS[method],
        options,
        arguments.runs,
        arguments.out or RESULTS / f"learning_{method}.md",
    )
