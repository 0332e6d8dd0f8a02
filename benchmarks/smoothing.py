"""One update of the teacher, relative to the traffic it needs: one `lerp_` over a flat tensor of as many elements.

    python benchmarks/smoothing.py [--quick] [--billion] [--out benchmarks/results/smoothing.md]

All ways but the growth take turns within one run; medians are reported. The peers run as their own documentation shows;
"the paper's released loop" is rewritten from its description. With a CUDA device everything is measured there
(smoothing-cuda.md): device time, with the host running ahead as in training.
"""

import argparse
import copy
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from common import save
from ema_pytorch import EMA
from lightly.models.utils import update_momentum
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spatial_ensemble import Smoothing, Teacher, methods, networks
from spatial_ensemble.data.batch import Batch
from spatial_ensemble.smoothing import kernels
from spatial_ensemble.smoothing.units import UNITS

MOMENTUM, PRESERVE_PROB = 0.99, 0.7
PACKAGES = ("torch", "torchvision", "numba", "numpy", "timm", "ema-pytorch", "lightly")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
Way = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 updates of ResNet-18, no training steps")
    parser.add_argument("--billion", action="store_true", help="grow to 1 B parameters, which takes 8 GB of memory")
    default = Path(__file__).parent / "results" / ("smoothing-cuda.md" if CUDA else "smoothing.md")
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    updates = 5 if arguments.quick else 40
    torch.set_num_threads(2)
    names = ["resnet18"] if arguments.quick else ["resnet18", "resnet50", "vit_b_16"]
    lines = ["Milliseconds an update, medians, and in brackets the ratio to the flat `lerp_`.", ""]
    lines += table({name: medians(ways(getattr(torchvision.models, name)().to(DEVICE)), updates) for name in names})
    lines += [
        "",
        *memory(),
        "",
        *([] if CUDA else [*first_update(), ""]),
        *growth(updates, 7 if arguments.quick else 10 if arguments.billion else 9),
    ]
    if not arguments.quick:
        lines += ["", *shares(4)]
    save(
        arguments.out,
        f"One update of the teacher on {'a GPU' if CUDA else 'the CPU'}",
        "python benchmarks/smoothing.py" + " --quick" * arguments.quick + " --billion" * arguments.billion,
        f"{updates} updates a way (a quarter of them from 100 M parameters up) after 3 for warming up, 2 threads, "
        f"float32, m = {MOMENTUM}, p = {PRESERVE_PROB}, seed 0; kernel: {kernel()}",
        lines,
        PACKAGES,
    )
    print(arguments.out.read_text())


def kernel() -> str:
    if CUDA:
        return "triton" if kernels._gpu() else "plain torch"
    return "numba" if kernels._cpu() else "plain torch"


def ways(student: nn.Module) -> dict[str, Way]:
    """Every way to update a teacher of this student."""
    size = sum(p.numel() for p in student.parameters())
    flat_teacher, flat_student = torch.zeros(size, device=DEVICE), torch.ones(size, device=DEVICE)

    def ours(smoothing: Smoothing, **options: object) -> Way:
        teacher = Teacher(student, smoothing, **options)  # type: ignore[arg-type]
        return lambda: teacher.update(student)

    averaged = Teacher(student, Smoothing(MOMENTUM))
    averaged.update(student)
    found: dict[str, Way] = {
        "flat lerp_": lambda: flat_teacher.lerp_(flat_student, 1 - MOMENTUM),
        "reading both flat tensors, no more": lambda: torch.dot(flat_teacher, flat_student),
        "torch._foreach_lerp_ on lists made once, nothing checked": unchecked(student),
        "ours, TMA": lambda: averaged.update(student),
        "of it, the staleness check": partial(averaged._current_plan, student),
        "ours, TMA, on_nonfinite='skip'": ours(Smoothing(MOMENTUM), on_nonfinite="skip"),
    }
    found |= {f"ours, STS, {unit}": ours(Smoothing(MOMENTUM, PRESERVE_PROB), unit=unit) for unit in UNITS}
    found["ours, SE, tensor"] = ours(Smoothing(0.0, PRESERVE_PROB))
    found |= {
        f"without that check: {name}": without_check(Teacher(student, Smoothing(MOMENTUM, p), unit=unit), student)
        for name, p, unit in (
            ("TMA", 0.0, "tensor"),
            ("STS, tensor", PRESERVE_PROB, "tensor"),
            ("STS, channel", PRESERVE_PROB, "channel"),
        )
    }
    if CUDA:
        found |= {
            f"ours, STS, {unit}, replayed as a graph": replay(found[f"ours, STS, {unit}"])
            for unit in ("tensor", "element")
        }
    timm = ModelEmaV3(student, decay=MOMENTUM)
    averaged_model = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(MOMENTUM))
    ema = EMA(student, beta=MOMENTUM, update_after_step=0, update_every=1, include_online_model=False)
    lightly = copy.deepcopy(student)
    found |= {
        "timm ModelEmaV3": lambda: timm.update(student),
        "torch AveragedModel, multi_avg_fn": lambda: averaged_model.update_parameters(student),
        "ema-pytorch": ema.update,
        "lightly update_momentum": lambda: update_momentum(student, lightly, MOMENTUM),
        "the paper's released loop, p = 0": released(student, 0.0),
        f"the paper's released loop, p = {PRESERVE_PROB}": released(student, PRESERVE_PROB),
    }
    return found


def without_check(teacher: Teacher, student: nn.Module) -> Way:
    """An update without its staleness check."""
    plan, steps = teacher._current_plan(student), itertools.count()
    return lambda: plan.run(next(steps), MOMENTUM, teacher.smoothing.at(0)[1], MOMENTUM)


def replay(update: Way) -> Way:
    update()  # the first cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    return graph.replay


def unchecked(student: nn.Module) -> Way:
    """The average of parameters and floating buffers, with no check at all."""
    kept = [t.detach() for t in [*student.parameters(), *student.buffers()] if t.is_floating_point()]
    return partial(torch._foreach_lerp_, [t.clone() for t in kept], kept, 1 - MOMENTUM)


def released(student: nn.Module, preserve_prob: float) -> Way:
    """Per tensor a draw of NumPy's global generator, and an average with three temporaries."""
    teacher = copy.deepcopy(student)

    def update() -> None:
        for theirs, own in zip(student.parameters(), teacher.parameters(), strict=True):
            if np.random.binomial(1, preserve_prob) == 0:  # noqa: NPY002
                own.data = own.data * MOMENTUM + theirs.data * (1 - MOMENTUM)

    return update


def medians(ways: dict[str, Way], updates: int, warm_up: int = 3) -> dict[str, float]:
    """Median seconds of each way, measured in turns, so that load from outside affects all alike."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(warm_up + updates):
        for way, run in ways.items():
            taken = timed(run)
            if turn >= warm_up:
                seconds[way].append(taken)
    return {way: statistics.median(times) for way, times in seconds.items()}


def timed(run: Way) -> float:
    if not CUDA:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]  # about 10 ms, so that the host runs ahead
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def table(measured: dict[str, dict[str, float]]) -> list[str]:
    lines = ["| | " + " | ".join(measured) + " |", "|---|" + "---:|" * len(measured)]
    for way in next(iter(measured.values())):
        cells = [f"{1000 * times[way]:.2f} ({times[way] / times['flat lerp_']:.2f})" for times in measured.values()]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def memory() -> list[str]:
    """Peak memory beyond what was held before the updates, by Linux's high-water mark or the GPU's allocator."""
    student = torchvision.models.resnet50().to(DEVICE)
    lines = []
    for unit in UNITS:
        teacher = Teacher(student, Smoothing(MOMENTUM, PRESERVE_PROB), unit=unit)
        for _ in range(3):
            teacher.update(student)
        before = held(peak=False)
        for _ in range(20):
            teacher.update(student)
        lines.append(f"{unit} {(held(peak=True) - before) / 2**20:.2f} MiB")
    return [f"Extra memory at the peak, ResNet-50: {', '.join(lines)}."]


def first_update() -> list[str]:
    """Seconds for the first update of a new process: with compiling, then with the cache on disk."""
    program = (
        "import time, torch, spatial_ensemble as s; net = torch.nn.Linear(9, 9); t = s.Teacher(net, s.Smoothing(0.9));"
        "start = time.perf_counter(); t.update(net); print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        cold, warm = (
            float(
                subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True).stdout
            )
            for _ in range(2)
        )
    return [f"First update of a process: {cold:.1f} s with compiling, {warm:.1f} s once that is cached on disk."]


def held(*, peak: bool) -> int:
    """Bytes of memory: the peak since the last call without `peak`, or the present use."""
    if CUDA:
        if not peak:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM" if peak else "VmRSS")).split()[1])


def growth(updates: int, most: int) -> list[str]:
    """From 1 M parameters in factors of ten, in square linear layers of at most 10 M weights."""
    lines = [
        "Growth, milliseconds an update:",
        "",
        "| parameters | flat lerp_ | TMA | tensor | element |",
        "|---:|---:|---:|---:|---:|",
    ]
    for exponent in range(6, most):
        total = 10**exponent
        width = min(1000, int(total**0.5)) if exponent == 6 else 3162
        few = max(3, updates // 4) if exponent > 7 else updates
        flat_teacher, flat_student = torch.zeros(total, device=DEVICE), torch.ones(total, device=DEVICE)
        times = medians({"flat": partial(flat_teacher.lerp_, flat_student, 1 - MOMENTUM)}, few)
        del flat_teacher, flat_student  # so that 1 B parameters need 8 GB, not 16
        student = nn.Sequential(
            *(nn.Linear(width, width, bias=False, device=DEVICE) for _ in range(round(total / width**2)))
        )
        teacher = Teacher(student, Smoothing(MOMENTUM))

        def ours(preserve_prob: float, unit: str, teacher: Teacher = teacher, student: nn.Module = student) -> Way:
            def update() -> None:
                teacher.smoothing = Smoothing(MOMENTUM, preserve_prob)
                teacher.unit = unit  # type: ignore[assignment]
                teacher.update(student)

            return update

        for way, run in {
            "tma": ours(0.0, "tensor"),
            "tensor": ours(PRESERVE_PROB, "tensor"),
            "element": ours(PRESERVE_PROB, "element"),
        }.items():
            times |= medians({way: run}, few)
        lines.append(f"| {total:,} | " + " | ".join(f"{1000 * value:.2f}" for value in times.values()) + " |")
    return lines


def shares(steps: int) -> list[str]:
    """The update's share of a training step, without loading and augmenting images."""
    lines = []
    for name, network, sizes in (("fixmatch", "wrn-28-2", (64, 448)), ("byol", "resnet18-cifar", (0, 64))):
        method = methods.get(name)(networks.build(network, channels=3, size=32), 10, methods.options_of(name)()).to(
            DEVICE
        )
        optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
        teacher = Teacher(method.student, Smoothing(MOMENTUM, PRESERVE_PROB))

        def images(count: int) -> Tensor:
            return torch.randn(count, 3, 32, 32, device=DEVICE)

        labels = torch.zeros(sizes[0], dtype=torch.int64, device=DEVICE)
        labelled = (images(sizes[0]),) if sizes[0] else ()
        batch = Batch(0, labelled, labels, (images(sizes[1]), images(sizes[1])))

        def step(method=method, optimizer=optimizer, teacher=teacher, batch=batch) -> None:
            optimizer.zero_grad()
            method(batch, teacher)[0].backward()
            optimizer.step()

        times = medians({"step": step}, steps, warm_up=1)
        times |= medians({"update": lambda teacher=teacher, method=method: teacher.update(method.student)}, 30)
        whole = times["step"] + times["update"]
        lines.append(
            f"Share of a {name} step ({network}, {sum(sizes)} images): {1000 * times['update']:.2f} of "
            f"{1000 * whole:.0f} ms, {100 * times['update'] / whole:.2f} %."
        )
    return ["\n".join(lines)]


if __name__ == "__main__":
    main()
