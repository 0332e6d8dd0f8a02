"""Two processes, as Lightning starts them."""

import os
import subprocess
import sys
from pathlib import Path

RANK = """
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


def test_every_ranks_teacher_starts_from_the_weights_of_rank_0(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, tmp_path / "rank.py", tmp_path]  # Lightning starts the second process itself
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for model in ("Network", "TeachingNetwork"):
        first, second = ((tmp_path / f"{model}{rank}").read_text() for rank in (0, 1))
        assert first == second
        assert first.startswith("1.0 ")
