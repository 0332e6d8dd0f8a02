"""What one update costs on 1 to 1024 GPUs: the arithmetic, and what one rank of that many really does, measured.

python benchmarks/scaling.py        writes benchmarks/results/scaling.md and the tables of docs/scaling.md
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torchvision
from common import save
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore  # a group whose other ranks do not exist

from spatial_ensemble import Teacher, spatial_temporal_smoothing, temporal_moving_average

MOMENTUM, PRESERVE_PROB = 0.99, 0.7
BANDWIDTH = 3.35e12  # bytes a second: what NVIDIA states for the memory of an H100 SXM
MODELS = ("ResNet-50", "ViT-g/14", "7 B")
GPUS = (1, 8, 64, 1024)
MEASURED = {"ResNet-50": GPUS, "ViT-g/14": GPUS[1:], "7 B": GPUS[2:]}  # whose shards lie in a small machine's memory
WAYS = {
    "TMA": (temporal_moving_average(MOMENTUM), "tensor"),
    "tensor": (spatial_temporal_smoothing(MOMENTUM, PRESERVE_PROB), "tensor"),
    "element": (spatial_temporal_smoothing(MOMENTUM, PRESERVE_PROB), "element"),
}
# A moving average reads T and S and writes T, 4 bytes each. A preserved tensor is not touched. Single weights are too
# fine for that: the 8 in a GPU's memory sector of 32 bytes are all preserved in one case of 17 only, so all count here.
BYTES = {"TMA": 12.0, "tensor": 12 * (1 - PRESERVE_PROB), "element": 12.0}
RESULTS = Path(__file__).parent / "results" / "scaling.md"
DOCS = Path(__file__).parents[1] / "docs" / "scaling.md"


def build(model: str) -> nn.Module:
    """A model on the meta device: shapes without memory."""
    with torch.device("meta"):
        if model == "ResNet-50":
            return torchvision.models.resnet50()
        if model == "ViT-g/14":
            return timm.create_model("vit_giant_patch14_dinov2")
        ends = [nn.Embedding(32000, 4096), nn.RMSNorm(4096), nn.Linear(4096, 32000, bias=False)]
        return nn.Sequential(*(nn.Sequential(*llama_block()) for _ in range(32)), *ends)


def llama_block() -> list[nn.Module]:
    """The weights of one block of Llama 2 7B: attention, gated feed-forward, two norms."""
    shapes = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    return [*(nn.Linear(*shape, bias=False) for shape in shapes), nn.RMSNorm(4096), nn.RMSNorm(4096)]


def parameters(model: str) -> int:
    return sum(parameter.numel() for parameter in build(model).parameters())


def arithmetic() -> list[str]:
    """The table: per GPU and update, with the weights copied (one GPU, DDP) or cut into as many shards as GPUs."""
    lines = [
        "| student | weights | held | teacher, MiB a GPU | TMA, MB moved | tensor | element "
        "| TMA, µs | tensor | element | sent |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        count = parameters(model)
        for gpus in GPUS:
            held = count / gpus
            moved = [held * BYTES[way] for way in WAYS]
            cells = [
                f"{model} | {count / 1e6:,.1f} M",
                f"in {gpus:,} shards" if gpus > 1 else "whole (one GPU, or DDP on any number)",
                digits(held * 4 / 2**20),
                *(digits(value / 1e6) for value in moved),
                *(digits(value / BANDWIDTH * 1e6) for value in moved),
                "0",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def digits(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def sharded(model: str) -> nn.Module:
    module = fully_shard(build(model)).to_empty(device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        local(tensor.detach()).fill_(0.5)
    return module


def seconds(teacher: Teacher | None, student: nn.Module, flat: tuple[Tensor, Tensor], updates: int) -> float:
    """Processor seconds of one update, or of one lerp over as many elements."""
    start = time.process_time()
    for _ in range(updates):
        teacher.update(student) if teacher else flat[0].lerp_(flat[1], 1 - MOMENTUM)
    return (time.process_time() - start) / updates


def measure(model: str, gpus: int, updates: int) -> dict[str, float]:
    """What rank 0 of so many does at an update; it holds the largest shard, and waits for nobody."""
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    student = sharded(model)
    module = sharded(model)
    shards = [local(parameter.detach()) for parameter in module.parameters()]
    held = sum(shard.numel() for shard in shards)
    found: dict[str, float] = {"held": held, "MiB": sum(shard.untyped_storage().nbytes() for shard in shards) / 2**20}
    flat = torch.full((held,), 0.5), torch.full((held,), 0.5)
    seconds(None, student, flat, 1)
    found["flat"] = seconds(None, student, flat, updates)
    for way, (smoothing, unit) in WAYS.items():
        teacher = Teacher(student, smoothing, unit=unit, module=module)
        with CommDebugMode() as communication:
            teacher.update(student)
        found[way] = seconds(teacher, student, flat, updates)
        found["sent"] = found.get("sent", 0) + communication.get_total_counts()
    dist.destroy_process_group()
    return found


def measured(updates: int) -> list[str]:
    lines = [
        "| student | ranks | weights held | teacher, MiB | flat lerp, ms | TMA | tensor | element | collectives |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model, counts in MEASURED.items():
        for gpus in counts:  # a process each: torch keeps what it works out for one group
            command = [sys.executable, __file__, "--updates", str(updates), "--rank-of", model, str(gpus)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            times = [f"{found[way] * 1e3:.2f}" for way in ("flat", *WAYS)]
            held = f"{found['held'] / 1e6:.3g} M", digits(found["MiB"])
            lines.append(f"| {' | '.join([model, f'{gpus:,}', *held, *times, str(found['sent'])])} |")
            print(lines[-1], flush=True)
    return lines


def put_into_docs(name: str, lines: Sequence[str]) -> None:
    """Replace what lies between two marks of docs/scaling.md."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    text = "\n".join([*lines, ""])
    DOCS.write_text(re.sub(pattern, lambda marks: marks[1] + text + marks[2], DOCS.read_text(), flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=30, help="measured updates of each way")
    parser.add_argument("--rank-of", nargs=2, metavar=("MODEL", "RANKS"), help="measure one rank and print it")
    options = parser.parse_args()
    if options.rank_of:
        print(json.dumps(measure(options.rank_of[0], int(options.rank_of[1]), options.updates)))
        return
    tables = {"arithmetic": arithmetic(), "measured": measured(options.updates)}
    for name, lines in tables.items():
        put_into_docs(name, lines)
    save(
        RESULTS,
        "One update of one rank of many, in milliseconds of one CPU thread",
        "python benchmarks/scaling.py",
        f"m {MOMENTUM}, p {PRESERVE_PROB}, float32, fully_shard over a group of which only rank 0 exists (torch's fake "
        f"backend), torch.set_num_threads(1), seed 0, mean of {options.updates} updates after one",
        tables["measured"],
        ["torch", "torchvision", "timm"],
    )


if __name__ == "__main__":
    main()
