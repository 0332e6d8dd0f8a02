"""What is particular to the compiled CPU kernel: threads, memory, dtypes, and doing without it."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from spatial_ensemble.smoothing.draw import draw_key
from spatial_ensemble.smoothing.units import MaskLayout

cpu = pytest.importorskip("spatial_ensemble.smoothing.kernels.cpu", exc_type=ImportError)

KEY = draw_key(0, "w")
SIZE = 300_000
LAYOUTS = [
    MaskLayout(None, 1, SIZE, SIZE, SIZE, 0),
    MaskLayout(KEY, 1, SIZE, SIZE, SIZE, 0),
    MaskLayout(KEY, 50, SIZE // 50, SIZE, SIZE, 0),
    MaskLayout(KEY, 5000, SIZE // 5000, SIZE, SIZE, 0),
]


def moved(layout, threads=2, weight=0.1):
    generator = torch.Generator().manual_seed(0)
    t, s = torch.randn(2, SIZE, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cpu.CpuKernel([(t, s, layout)]).run(3, 30_000, weight)
    finally:
        torch.set_num_threads(before)
    return t


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("openmp", [True, False])
def test_any_number_and_kind_of_threads_gives_the_same_bits(layout, openmp):
    expected = moved(layout, threads=1)
    with mock.patch.object(cpu, "_openmp", cpu._openmp if openmp else lambda: None):
        for threads in (1, 2, 5):
            assert torch.equal(moved(layout, threads), expected)


def test_torchs_own_threads_are_used():
    assert cpu._openmp() is not None or not sys.platform.startswith("linux")
    with mock.patch.object(cpu, "_openmp") as openmp:
        for threads in (1, 2, 9):
            moved(LAYOUTS[0], threads)
            assert openmp.return_value.call_args.args[2] == min(threads, -(-SIZE // cpu.loops.CHUNK))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("flush", [False, True])
def test_every_number_of_16_bits_is_widened_exactly(dtype, flush):
    s = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    t = torch.zeros(2**16)
    expected = s.float()
    torch.set_flush_denormal(flush)
    try:
        cpu.CpuKernel([(t, s, MaskLayout(None, 1, 2**16, 2**16, 2**16, 0))]).run(0, 0, 1.0)
    finally:
        torch.set_flush_denormal(False)
    nan = expected.isnan()
    assert torch.equal(t.isnan(), nan)
    assert torch.equal(t[~nan].view(torch.int32), expected[~nan].view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("index", [0, 65_535, 65_536, 99_998])
def test_an_inf_or_nan_is_found_wherever_it_is(dtype, value, index):
    whole = [MaskLayout(None, 1, size, size, size, 0) for size in (7, 99_999, 0, 3)]
    students = [torch.full((layout.row,), torch.finfo(dtype).max, dtype=dtype) for layout in whole]
    table = cpu.CpuKernel([(torch.zeros(len(s)), s, layout) for s, layout in zip(students, whole, strict=True)])
    assert table.nonfinite() == []
    students[1][index] = value
    (found,) = table.nonfinite()
    assert found is students[1]
    students[3][-1] = value
    assert [id(tensor) for tensor in table.nonfinite()] == [id(students[1]), id(students[3])]


def test_autograd_sees_that_the_teacher_changed():
    t, s, x = torch.randn(4), torch.randn(4), torch.randn(4, requires_grad=True)
    loss = (x * t).sum()
    cpu.CpuKernel([(t, s, MaskLayout(None, 1, 4, 4, 4, 0))]).run(0, 0, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def run(program, **environment):
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


AS_LERP = """
import torch
from spatial_ensemble.smoothing import kernels
from spatial_ensemble.smoothing.units import MaskLayout
t, s = torch.randn(2, 1001)
expected = t.lerp(s, 0.3)
for kernel in kernels.choose([(t, s, MaskLayout(None, 1, 1001, 1001, 1001, 0))]):
    kernel.run(0, 0, 0.3)
assert torch.equal(t, expected)
print(kernels._cpu() is not None)
"""


def test_an_update_has_the_bits_of_lerp_whatever_vector_units_torch_uses():
    """Without AVX torch.lerp may round product and sum separately; the kernel is then refused with a warning."""
    quiet = "import warnings; warnings.filterwarnings('ignore', 'numba cannot .*: its values differ from torch')\n"
    run(quiet + AS_LERP, ATEN_CPU_CAPABILITY="default")


def test_without_numba_plain_torch_is_used_and_nothing_is_said():
    assert run("import sys; sys.modules['numba'] = None\n" + AS_LERP).split() == ["False"]


def test_no_writable_cache_costs_compiling_only(tmp_path):
    (tmp_path / "file").touch()
    assert run(AS_LERP, NUMBA_CACHE_DIR=str(tmp_path / "file")).split() == ["True"]


MEMORY = """
import torch
from pathlib import Path
from unittest import mock
from spatial_ensemble.smoothing import kernels
from spatial_ensemble.smoothing.units import MaskLayout

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

torch.set_num_threads(1)
size = 4_000_000
t, s = torch.randn(2, 500, size // 500)
for unit_size in (size, 8000, 20, 1):
    layout = MaskLayout((1, 2), unit_size, size // unit_size, size, size, 0)
    for name in ("cpu", "plain"):
        with mock.patch.object(kernels, "_cpu", kernels._cpu if name == "cpu" else lambda: None):
            (kernel,) = kernels.choose([(t, s, layout)])
            kernel.run(0, 1, 0.1)
            Path("/proc/self/clear_refs").write_text("5")
            before = kilobytes("VmRSS")
            kernel.run(1, 1, 0.1)
            assert kilobytes("VmHWM") - before <= 1024, (name, unit_size, kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_an_update_takes_at_most_a_mebibyte():
    run(MEMORY)


FORK = """
import os, torch
from spatial_ensemble.smoothing import kernels
from spatial_ensemble.smoothing.units import MaskLayout
torch.set_num_threads(2)
t, s = torch.zeros(10**6), torch.ones(10**6)
(kernel,) = kernels.choose([(t, s, MaskLayout(None, 1, 10**6, 10**6, 10**6, 0))])
kernel.run(0, 0, 0.5)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # as DataLoader's workers do
    kernel.run(1, 0, 0.5)
    os._exit(0 if (t == 0.75).all() else 1)
assert os.waitpid(child, 0)[1] == 0 and (t == 0.5).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_may_update():
    run(FORK)
