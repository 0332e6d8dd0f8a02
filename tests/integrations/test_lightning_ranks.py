"""Two processes, as Lightning starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_lightning import STS, Network, TeachingNetwork, equal, trainer, weights

from spatial_ensemble.integrations.lightning import TeacherUpdate, WeightSmoothing

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
SHORT = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 2, "val_check_interval": 2}

DDP = """
import sys
from pathlib import Path

import torch
from test_lightning import Network, TeachingNetwork, trainer

from spatial_ensemble import temporal_moving_average
from spatial_ensemble.integrations.lightning import TeacherUpdate, WeightSmoothing

folder, rule = Path(sys.argv[1]), temporal_moving_average(0.999)
for model, callback in ((Network(), WeightSmoothing(rule)), (TeachingNetwork(rule), TeacherUpdate())):
    run = trainer(folder, callback, strategy="ddp", devices=2, max_steps=1)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 1.0 + run.global_rank)  # other values on each rank, as without a seed
    run.fit(model)
    teacher = model.teacher if isinstance(model, TeachingNetwork) else callback.teacher
    weight = next(teacher.module.parameters()).mean().round()
    (folder / f"{type(model).__name__}{run.global_rank}").write_text(f"{weight} {teacher.fingerprint()}")
"""

FSDP = """
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from test_lightning import STS, LateNetwork, TeachingNetwork, trainer
from test_lightning_ranks import SHORT
from torch.distributed.fsdp import fully_shard

from spatial_ensemble import Teacher
from spatial_ensemble.integrations.lightning import TeacherUpdate, WeightSmoothing

folder = Path(sys.argv[1])


class Sharded(LateNetwork):
    where = "configure_model"

    def configure_model(self):
        super().configure_model()
        fully_shard(self.student[0], mesh=self.device_mesh["data_parallel"])
        fully_shard(self.student, mesh=self.device_mesh["data_parallel"])

    def validation_step(self, batch, index):
        super().validation_step(batch, index)
        self.student(self.batch())

    def on_validation_end(self):
        super().on_validation_end()
        self.student(self.batch())  # leaves the root gathered, in the sanity check too


class ShardedTeaching(Sharded, TeachingNetwork):
    def __init__(self):
        LateNetwork.__init__(self)

    def configure_model(self):
        LateNetwork.configure_model(self)
        self.teacher = Teacher(self.student, STS)
        for module in (self.student, self.teacher.module):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


def run(model, callback, *others, distributed=True, resume=None, **options):
    strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=distributed)
    every_batch = {"use_distributed_sampler": False}
    made = trainer(folder, callback, *others, strategy=strategy, devices=2, **SHORT, **every_batch, **options)
    made.fit(model, ckpt_path=resume)
    return made


def whole(state):
    return {name: getattr(value, "full_tensor", lambda: value)() for name, value in state.items()}


def report(model, teacher):
    module = teacher.module.student if hasattr(teacher.module, "student") else teacher.module
    return {
        "stepped": [whole(state) for state in model.stepped],
        "validated": [whole(state) for state in model.validated],
        "teacher": whole(module.state_dict()),
        "after": whole(model.student.state_dict()),
        "step": teacher.step,
    }


reports = {}
for distributed in (True, False):
    kept = folder / f"distributed {distributed}"
    model, callback = Sharded(), WeightSmoothing(STS)
    keep = ModelCheckpoint(kept, every_n_train_steps=3, save_top_k=-1)
    made = run(model, callback, keep, distributed=distributed, enable_checkpointing=True)
    reports["smoothing"] = report(model, callback.teacher)
    (saved,) = kept.glob("*step=3*")
    model, callback = Sharded(), WeightSmoothing(STS)
    run(model, callback, distributed=distributed, resume=saved)
    reports[f"resumed, distributed {distributed}"] = report(model, callback.teacher)
model = ShardedTeaching()
run(model, TeacherUpdate())
reports["teaching"] = report(model, model.teacher)
if made.is_global_zero:
    torch.save(reports, folder / "reports.pt")
"""


def two_ranks(script: str, folder: Path) -> None:
    (folder / "rank.py").write_text(script)
    command = [sys.executable, folder / "rank.py", folder]  # Lightning starts the second process itself
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_every_ranks_teacher_starts_from_the_weights_of_rank_0(tmp_path):
    two_ranks(DDP, tmp_path)
    for model in ("Network", "TeachingNetwork"):
        first, second = ((tmp_path / f"{model}{rank}").read_text() for rank in (0, 1))
        assert first == second
        assert first.startswith("1.0 ")


@pytest.fixture
def one_thread():
    """As in the ranks: equal threads, equal bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_sharded_by_fsdp2_it_is_the_run_of_one_process(tmp_path, one_thread):
    two_ranks(FSDP, tmp_path)
    reports = torch.load(tmp_path / "reports.pt", weights_only=True)
    model, callback = Network(), WeightSmoothing(STS)
    trainer(tmp_path, callback, **SHORT).fit(model)
    teaching = TeachingNetwork()
    trainer(tmp_path, TeacherUpdate(), **SHORT).fit(teaching)
    for name, plain, teacher in (
        ("smoothing", model, callback.teacher.module.student),
        ("teaching", teaching, teaching.teacher.module),
    ):
        found = reports[name]
        assert found["step"] == len(found["stepped"]) == len(plain.stepped) == 8
        assert all(equal(a, b) for a, b in zip(found["stepped"], plain.stepped, strict=True))
        assert all(equal(a, b) for a, b in zip(found["validated"], plain.validated, strict=True))
        assert equal(found["teacher"], weights(teacher))
    assert equal(reports["smoothing"]["after"], reports["smoothing"]["teacher"])
    for distributed in (True, False):
        resumed = reports[f"resumed, distributed {distributed}"]
        assert resumed["step"] == 8
        assert equal(resumed["stepped"][-1], reports["smoothing"]["stepped"][-1])
        assert equal(resumed["teacher"], reports["smoothing"]["teacher"])
