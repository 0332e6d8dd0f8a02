"""The Triton kernel: by its interpreter on a CPU, compiled without a GPU, and on one where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spatial_ensemble import Teacher, spatial_temporal_smoothing
from spatial_ensemble.smoothing.units import UNITS

pytest.importorskip("triton")

# Triton decides when it is imported whether to interpret, so each of these runs in a process of its own.
AGAINST_THE_REFERENCE = """
import reference, torch
from spatial_ensemble.smoothing.draw import draw_key, threshold
from spatial_ensemble.smoothing.kernels import gpu, plain
from spatial_ensemble.smoothing.units import UNITS, MaskLayout, mask_layout

for unit in UNITS:
    for shape in [(), (7,), (40, 3), (9, 16, 3, 3), (3, 0)]:
        for momentum in (0.2, 0.9):
            t, s = torch.randn(shape), torch.randn(shape)
            name = "w" if unit == "layer" else "w.x"
            keep = reference.preserved(shape, name, unit=unit, seed=1, step=2**33 + 7, preserve_prob=0.6)
            expected = reference.smooth(t, s, keep, momentum)
            moved = t.clone()
            gpu.GpuKernel([(moved, s, mask_layout(t, "w.x", unit, 1))]).run(2**33 + 7, threshold(0.6), 1 - momentum)
            assert torch.equal(moved[keep], t[keep])
            assert (moved == t).sum() == keep.sum(), (unit, shape, momentum)
            # The interpreter rounds a fused product and sum twice.
            torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-6)

key = draw_key(1, "w")
# Shards, chunk boundaries, half precision and a whole list at once, against plain torch.
triples = []
for numel, where in [
    (9000, (1, 60_000, 9000, 9000, 777)),
    (6000, (1, 60_000, 30, 90, 35)),
    (6000, (90, 2000, 30, 90, 30)),
    (6400, (64, 1000, 6400, 6400, 640)),
    (6400, (64, 1000, 32, 64, 32)),
]:
    for teacher, student in ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float16,) * 2):
        triples.append((torch.randn(numel).to(teacher), torch.randn(numel).to(student), MaskLayout(key, *where)))
triples.append((torch.randn(5000), torch.randn(5000), MaskLayout(None, 1, 5000, 5000, 5000, 0)))
# Stochastic rounding by equal draws; one float32 in 2^13 that is rounded twice is on the other side of its draw.
for unit_size, where in [(9000, (9000, 9000, 0)), (1, (9000, 9000, 777)), (6, (30, 90, 30)), (27_000, (30, 90, 30))]:
    for teacher, student in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        t = torch.randn(9000).to(teacher)
        t[:200] *= 2.0**-14
        s = (t.float() * (1 + 0.1 * torch.randn(9000))).to(student)
        units = max(60_000 // unit_size, 1) if unit_size < 9000 else 1
        layout = MaskLayout(key, unit_size, units, *where, rounding=draw_key(1, "w", "rounding"))
        triples.append((t, s, layout))
triples.append((*triples[-2][:2], MaskLayout(None, 1, 9000, 30, 90, 30, rounding=key)))
for bound in (0, 30_000, 1 << 16):
    for weight in (0.3, 1.0):
        ours, theirs = ([(t.clone(), s, layout) for t, s, layout in triples] for _ in range(2))
        gpu.GpuKernel(ours).run(5, bound, weight)
        plain.PlainKernel(theirs).run(5, bound, weight)
        for (ours_t, _, layout), (theirs_t, _, _) in zip(ours, theirs, strict=True):
            exact = weight == 1
            if layout.rounding is not None:
                assert (ours_t != theirs_t).float().mean() <= (0 if exact else 1e-3)
            torch.testing.assert_close(ours_t, theirs_t, rtol=0 if exact else None, atol=0 if exact else None)
"""

COMPILE = """
import inspect
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from spatial_ensemble.smoothing.kernels import gpu

constants = ("FORMULA", "DRAWS", "GROUP", "TEACHER", "STUDENT", "BITS", "WIDE", "ROUND")
signature = dict(rows="*i64", clock="*i64", tensors="i32", threshold="i32", factor="fp32")
given = "constexprs"
if "constants" in inspect.signature(ASTSource).parameters:  # Triton 3.2
    given = "constants"
else:
    signature |= dict.fromkeys(constants, "constexpr")
for values in [
    (gpu.SMALL, gpu.WHOLE, 1, tl.float32, tl.float32, 8, True, False),
    (gpu.SMALL, gpu.WHOLE, 1, tl.bfloat16, tl.bfloat16, 8, False, False),
    (gpu.LARGE, gpu.ELEMENTS, 1, tl.float32, tl.bfloat16, 8, False, False),
    (gpu.COPY, gpu.UNITS, 8, tl.float16, tl.float16, 8, True, False),
    (gpu.SMALL, gpu.UNITS, 1, tl.float32, tl.float32, 8, False, False),
    (gpu.SMALL, gpu.SPANS, 1, tl.bfloat16, tl.bfloat16, 8, False, True),
    (gpu.SMALL, gpu.ELEMENTS, 1, tl.float16, tl.float16, 8, False, True),
    (gpu.LARGE, gpu.UNITS, 8, tl.float16, tl.float32, 8, True, True),
]:
    source = ASTSource(gpu._smooth, signature, **{given: dict(zip(constants, values, strict=True))})
    target = GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"enable_fp_fusion": False})
    assert compiled.asm["cubin"]
    wide = values[-2]
    assert ("ld.global.v4" in compiled.asm["ptx"], "st.global.v4" in compiled.asm["ptx"]) == (wide, wide), values
"""


def run(program, **environment):
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path, **environment}, check=True)


def test_the_interpreted_kernel_agrees_with_the_reference():
    run(AGAINST_THE_REFERENCE, TRITON_INTERPRET="1")


def test_the_kernel_compiles_for_a_gpu_that_is_not_there_and_moves_16_bytes_at_once(tmp_path):
    run(COMPILE, TRITON_CACHE_DIR=str(tmp_path))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("unit", UNITS)
def test_gpu_and_cpu_agree(unit):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.Linear(40, 3000))
    on_cpu = Teacher(network, spatial_temporal_smoothing(0.9, 0.7), unit=unit)
    on_gpu = Teacher(network, spatial_temporal_smoothing(0.9, 0.7), unit=unit, device="cuda")
    for parameter in network.parameters():
        parameter.data.add_(1)
    on_cpu.update(network)
    on_gpu.update(network.to("cuda"))
    for ours, theirs in zip(on_gpu.module.parameters(), on_cpu.module.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=2**-23, atol=1e-9)


@pytest.mark.gpu
@needs_gpu
def test_each_replay_of_a_cuda_graph_is_another_step():
    network = nn.Linear(64, 64, device="cuda")
    captured, eager = (Teacher(network, spatial_temporal_smoothing(0.9, 0.7), unit="element") for _ in range(2))
    captured.update(network)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.update(network)
    eager.update(network)
    for _ in range(3):
        with torch.no_grad():
            network.weight.add_(1)
        graph.replay()
        eager.update(network)
    assert torch.equal(captured.module.weight, eager.module.weight)
