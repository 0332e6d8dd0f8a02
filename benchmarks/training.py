"""Images a second of whole training steps on all cores: ours, beside the same work as others' code does it.

    python benchmarks/training.py [--quick] [--out benchmarks/results/training.md]
    python benchmarks/training.py --accuracy [--seeds 10] [--cifar FOLDER --steps 300]

FixMatch, WRN-28-2: beside kekmodel/FixMatch-pytorch. Its way, written anew: every image with Pillow and torchvision in
a DataLoader, one interleaved forward pass of labelled, weak and strong images, whose weak half labels the strong one, a
moving average parameter by parameter.
BYOL, ResNet-18 with the CIFAR stem: beside lightly's example. Its way, written anew: lightly's BYOLTransform on every
image in a DataLoader, its heads, its loss, its `update_momentum`.
Ours is the step of `spatial-ensemble train`: batches, augmentation, loss, optimizer, teacher; without evaluation.

What float32 could reach at most is a step's arithmetic, counted by torch, at the speed of one large convolution.

Both have the same networks, batches, images in memory and cores, and take turns within one run; the medians count. An
image counts once a step, however many views are made of it. With a CUDA device the same is measured there, in the
published batches (so far not run there).

With --accuracy: what bfloat16 costs in accuracy. FixMatch on digits as in its recipe, or on CIFAR-10 with 250 labels
from a folder of its images, each seed once in float32 and once in bfloat16, alike in all else.
"""

import argparse
import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from augment import pillow, weak_torchvision
from common import mean_and_interval, save
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from torchvision.transforms.v2.functional import resize

from spatial_ensemble import networks
from spatial_ensemble.data.images import ImageData, Images
from spatial_ensemble.data.images import statistics as pixel_statistics
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.determinism import deterministic_cudnn
from spatial_ensemble.training.optim import build_optimizer
from spatial_ensemble.training.prepare import prepare
from spatial_ensemble.training.processes import launch
from spatial_ensemble.training.recipes import default, fixmatch_digits
from spatial_ensemble.training.run import take_step, train

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
WORKERS = 8 if CUDA else 2
SIZE, CLASSES, RATIO, SEED = 32, 10, 7, 0
BATCH = {"fixmatch": 64 if CUDA else 16, "byol": 256 if CUDA else 64}
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
Step = Callable[[], object]


class Each(Dataset[object]):
    """What a transform makes of each image, [H, W, C] uint8, and its label."""

    def __init__(self, pixels: np.ndarray, labels: Tensor, transform: Callable[[np.ndarray], object]):
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> object:
        return self.transform(self.pixels[index]), self.labels[index]


def forever(dataset: Each, batch_size: int, workers: int) -> Iterator[list]:
    loader = DataLoader(
        dataset, batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True, pin_memory=CUDA
    )
    while True:
        yield from loader


def kekmodel(data: ImageData, autocast: bool) -> Step:
    """A step as kekmodel/FixMatch-pytorch takes it."""
    backbone = networks.build("wrn-28-2", channels=3, size=SIZE)
    model = nn.Sequential(backbone, nn.Linear(backbone.num_features, CLASSES)).to(DEVICE)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in parameters.items() if not ("bias" in name or "bn" in name)], "weight_decay": 5e-4},
        {"params": [p for name, p in parameters.items() if "bias" in name or "bn" in name], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.03, momentum=0.9, nesterov=True)
    tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])
    weak = weak_torchvision(SIZE, True)
    pixels, labels = data.train.images.permute(0, 2, 3, 1).contiguous().numpy(), data.train.labels
    batch, parts = BATCH["fixmatch"], 2 * RATIO + 1
    labelled = forever(Each(pixels, labels, lambda x: tensor(weak(x))), batch, WORKERS // 2)
    both = Each(pixels, labels, lambda x: (tensor(weak(x)), tensor(pillow(x[None], weak)[0].copy())))
    unlabelled = forever(both, RATIO * batch, WORKERS // 2)

    def step() -> None:
        x, targets = next(labelled)
        (u_weak, u_strong), _ = next(unlabelled)
        inputs = torch.cat([x, u_weak, u_strong])
        shape = inputs.shape
        inputs = inputs.reshape(-1, parts, *shape[1:]).transpose(0, 1).reshape(shape).to(DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
            outputs = model(inputs)
        outputs = outputs.float().reshape(parts, -1, CLASSES).transpose(0, 1).reshape(-1, CLASSES)
        logits, (logits_weak, logits_strong) = outputs[:batch], outputs[batch:].chunk(2)
        loss_labelled = F.cross_entropy(logits, targets.to(DEVICE))
        confidence, pseudo = logits_weak.detach().softmax(dim=-1).max(dim=-1)
        mask = confidence.ge(0.95).float()
        loss_unlabelled = (F.cross_entropy(logits_strong, pseudo, reduction="none") * mask).mean()
        loss = loss_labelled + loss_unlabelled
        loss.backward()
        _ = loss.item(), loss_labelled.item(), loss_unlabelled.item(), mask.mean().item()
        optimizer.step()
        with torch.no_grad():
            state, smooth = model.state_dict(), average.state_dict()
            for name in parameters:
                smooth[name].copy_(smooth[name] * 0.999 + (1 - 0.999) * state[name])
            for name, _ in model.named_buffers():
                smooth[name].copy_(state[name])
        model.zero_grad()

    return step


def lightly(data: ImageData, autocast: bool) -> Step:
    """A step as lightly's BYOL example takes it."""
    backbone = networks.build("resnet18-cifar", channels=3, size=SIZE).to(DEVICE)
    projector, predictor = BYOLProjectionHead(512, 1024, 256).to(DEVICE), BYOLPredictionHead(256, 1024, 256).to(DEVICE)
    slow_backbone, slow_projector = copy.deepcopy(backbone), copy.deepcopy(projector)
    deactivate_requires_grad(slow_backbone)
    deactivate_requires_grad(slow_projector)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD([p for m in (backbone, projector, predictor) for p in m.parameters()], lr=0.06)
    views = [kind(input_size=SIZE, gaussian_blur=0.0) for kind in (BYOLView1Transform, BYOLView2Transform)]
    transform = BYOLTransform(*views)
    pixels = data.train.images.permute(0, 2, 3, 1).contiguous().numpy()
    dataset = Each(pixels, data.train.labels, lambda x: transform(Image.fromarray(x)))
    pairs = forever(dataset, BATCH["byol"], WORKERS)

    def step() -> None:
        views, _ = next(pairs)
        update_momentum(backbone, slow_backbone, m=0.996)
        update_momentum(projector, slow_projector, m=0.996)
        first, second = (view.to(DEVICE) for view in views)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
            p1 = predictor(projector(backbone(first).flatten(start_dim=1)))
            z1 = slow_projector(slow_backbone(first).flatten(start_dim=1)).detach()
            p2 = predictor(projector(backbone(second).flatten(start_dim=1)))
            z2 = slow_projector(slow_backbone(second).flatten(start_dim=1)).detach()
        loss = 0.5 * (criterion(p1.float(), z2.float()) + criterion(p2.float(), z1.float()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(data: ImageData, config: Config) -> Step:
    """A step of `spatial-ensemble train`."""
    fabric, prepared = launch(config.run), prepare(config, data, device=DEVICE)
    module, stepper = fabric.setup(prepared.method, build_optimizer(prepared.method, config))
    steps = iter(range(config.run.steps))
    return lambda: take_step(next(steps), prepared, fabric, module, stepper)


def ways(method: str, data: ImageData) -> dict[tuple[str, str], Step]:
    """(who, precision) -> a step."""
    config = default(method, "cifar10").replace(
        network="wrn-28-2" if method == "fixmatch" else "resnet18-cifar",
        batch_size=BATCH[method],
        labels=250 if method == "fixmatch" else None,
        optimizer="sgd",
        seed=SEED,
    )
    name, theirs = ("kekmodel's way", kekmodel) if method == "fixmatch" else ("lightly's way", lightly)
    found: dict[tuple[str, str], Step] = {}
    for called, precision in PRECISIONS.items():
        own = config.replace(precision=precision)
        found[name, called] = theirs(data, precision != "32-true")
        found["ours", called] = ours(data, own)
        if method == "fixmatch":
            student = own.replace(labels_from="student")
            found["ours, labels from the student", called] = ours(data, student)
    return found


def seconds(steps: dict[tuple[str, str], Step], turns: int, each: int) -> dict[tuple[str, str], float]:
    """Median wall-clock seconds of a step of each way, `each` steps a turn; the first turn is for warming up."""
    times: dict[tuple[str, str], list[float]] = {way: [] for way in steps}
    for turn in range(turns + 1):
        for way, step in steps.items():
            time.sleep(0.5)  # the workers of the way before fill their queues
            start = time.perf_counter()
            for _ in range(each):
                step()
            if CUDA:
                torch.cuda.synchronize()
            if turn:
                times[way].append((time.perf_counter() - start) / each)
    return {way: statistics.median(measured) for way, measured in times.items()}


def limit(steps: dict[tuple[str, str], Step]) -> tuple[float, float]:
    """(arithmetic of our step in GFLOP, GFLOP a second of a large convolution's forward pass), in float32."""
    with FlopCounterMode(display=False) as counter:
        steps["ours", "float32"]()
    with torch.no_grad():
        images = torch.randn(64, 128, 16, 16, device=DEVICE).to(memory_format=torch.channels_last)
        layer = nn.Conv2d(128, 128, 3, padding=1, bias=False, device=DEVICE).to(memory_format=torch.channels_last)
        with FlopCounterMode(display=False) as convolution:
            layer(images)
        took = seconds({("convolution", "float32"): lambda: layer(images)}, turns=9, each=10)
    (second,) = took.values()
    return counter.get_total_flops() / 1e9, convolution.get_total_flops() / 1e9 / second


def accuracy(config: Config, seeds: int, out: Path) -> None:
    """Train each seed in both precisions; keep the accuracies, and the mean of the differences with its deviation."""
    rows, differences = [], []
    for seed in range(seeds):
        results = {}
        for called, precision in PRECISIONS.items():
            with tempfile.TemporaryDirectory() as folder:
                own = config.replace(precision=precision, seed=seed)
                results[called] = train(own, Path(folder) / "run", progress=False)
        teachers = [result.teacher_accuracy for result in results.values()]
        students = [result.student_accuracy for result in results.values()]
        differences.append(teachers[1] - teachers[0])
        cells = (f"{value:.2f}" for value in (*teachers, *students))
        rows.append(f"| {seed} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    images, steps = config.images, config.run.steps
    mean = f"Teacher, bfloat16 minus float32: {mean_and_interval(differences)}."
    heads = "| seed | teacher, float32 | teacher, bfloat16 | student, float32 | student, bfloat16 |"
    save(
        out,
        f"FixMatch on {'digits' if images.data == 'digits' else 'CIFAR-10'} in float32 and in bfloat16, accuracy in %",
        f"python benchmarks/training.py --accuracy --seeds {seeds}"
        + ("" if images.data == "digits" else f" --cifar FOLDER --steps {steps}"),
        f"{images.labels} labels, {steps} steps, batch {config.run.batch_size} + {RATIO} times as many, network "
        f"{config.model.network or 'by size'}, smoothing {config.teacher.smoothing}, seeds 0 to {seeds - 1}, "
        f"{torch.get_num_threads()} thread(s)",
        [mean, "", heads, "|---:|---:|---:|---:|---:|", *rows],
        ["torch", "lightning"],
    )


def pictures(count: int = 5000) -> ImageData:
    """Smooth random pictures, as large as CIFAR's."""
    noise = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    images = Images(resize(noise, [SIZE, SIZE], antialias=True), torch.arange(count) % CLASSES)
    classes = tuple(map(str, range(CLASSES)))
    return ImageData("pictures", images, images, classes, *pixel_statistics(images.images), flip=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns of one step: to see that it works")
    parser.add_argument("--turns", type=int, default=9, help="turns each way gets")
    parser.add_argument("--each", type=int, default=50 if CUDA else 2, help="steps a turn")
    parser.add_argument("--accuracy", action="store_true", help="measure what bfloat16 costs in accuracy instead")
    parser.add_argument("--seeds", type=int, default=10, help="runs in each precision, for --accuracy")
    parser.add_argument("--cifar", help="folder with CIFAR-10's images by class, for --accuracy; none: digits")
    parser.add_argument("--steps", type=int, default=300, help="of each run on CIFAR-10")
    parser.add_argument("--out", type=Path, help="the file to write")
    arguments = parser.parse_args()
    results = Path(__file__).parent / "results"
    if arguments.accuracy:
        config, name = fixmatch_digits(), "precision-digits.md"
        if arguments.cifar:
            config = default("fixmatch", "folder").replace(path=arguments.cifar, labels=250, network="wrn-28-2")
            config, name = config.replace(steps=arguments.steps, eval_every=arguments.steps), "precision-cifar10.md"
        accuracy(config, arguments.seeds, arguments.out or results / name)
        return
    turns, each = (2, 1) if arguments.quick else (arguments.turns, arguments.each)
    random.seed(SEED)
    torch.manual_seed(SEED)
    data, rows, limits = pictures(), [], []
    with deterministic_cudnn():  # as train has it
        for method, what in (("fixmatch", "FixMatch, WRN-28-2"), ("byol", "BYOL, ResNet-18 with the CIFAR stem")):
            images = BATCH[method] * (1 + RATIO if method == "fixmatch" else 1)
            steps = ways(method, data)
            measured = seconds(steps, turns, each)
            (work, speed), reached = limit(steps), measured["ours", "float32"]
            limits.append(
                f"- {what}: a step of ours is {work:,.0f} GFLOP, and a large convolution reaches {speed:,.0f} GFLOP/s: "
                f"at most {images * speed / work:,.1f} images/s in float32; ours has {work / speed / reached:.0%}."
            )
            theirs = next(iter(measured.values()))  # in float32, as published
            for (who, precision), took in measured.items():
                rows.append(f"| {what} | {who} | {precision} | {images / took:,.1f} | {theirs / took:.2f} |")
                print(f"{what:36s} {who:30s} {precision:9s} {images / took:9,.1f} images/s {theirs / took:6.2f}")
    batch = f"{BATCH['fixmatch']} labelled and {RATIO * BATCH['fixmatch']} unlabelled"
    save(
        arguments.out or results / ("training-cuda.md" if CUDA else "training.md"),
        "Images a second of a training step, data loading included",
        f"python benchmarks/training.py --turns {turns} --each {each}",
        f"FixMatch {batch} images a step, BYOL {BATCH['byol']}, each image counted once; {SIZE} x {SIZE} x 3; "
        f"{torch.get_num_threads()} threads, {WORKERS} DataLoader workers for the others; seed {SEED}; wall-clock "
        f"medians of {turns} turns of {each} steps",
        [
            "| step | way | precision | images/s | times the others' float32 |",
            "|---|---|---|---:|---:|",
            *rows,
            "",
            *limits,
            "- FixMatch with the teacher's labels needs no gradient of the weak views, as kekmodel's way does: the like"
            " of that is the row with labels from the student.",
        ],
        ["torch", "torchvision", "lightning", "lightly", "pillow"],
    )


if __name__ == "__main__":
    main()
