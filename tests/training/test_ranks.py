"""Several processes, as torchrun starts them."""

import json
from dataclasses import replace

import pytest

from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.run import train

CONFIG = Config(
    "fixmatch",
    "digits",
    labels=20,
    steps=4,
    batch_size=20,
    lr_schedule="constant",
    device="cpu",
    eval_every=2,
    options={"unlabelled_ratio": 1},
)
PROGRAM = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.run import _Run, train

def evaluate(run, done, original=_Run.evaluate):
    assert run.teacher.verify_ranks() == {}
    return original(run, done)

_Run.evaluate = evaluate
out = Path(sys.argv[1])
result = train(Config.from_dict(json.loads(sys.argv[2])), out / "run", progress=False)
(out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(result.history))
"""


@pytest.mark.parametrize("method", ["fixmatch", "mean_teacher"])  # the second's teacher has statistics of its own
def test_two_processes_share_a_batch_and_keep_one_teacher(tmp_path, monkeypatch, method):
    """Both have the same teacher to the bit and measure the same, and one process can go on from their checkpoint."""
    from torch.distributed.run import main

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "program.py").write_text(PROGRAM)
    alike = replace(CONFIG, method=method)
    config = json.dumps(alike.to_dict())
    main(["--standalone", "--nproc-per-node=2", str(tmp_path / "program.py"), str(tmp_path), config])
    histories = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert len(histories[0]) == 2
    assert histories[0] == histories[1]
    longer = replace(alike, steps=6)
    result = train(longer, tmp_path / "run", resume=True, progress=False)
    assert result.steps_done == 2
    assert result.history[:2] == histories[0]
    assert checkpoint.load(result.checkpoint)["teacher"]["_extra_state"]["step"] == 6
