"""Every example runs to its end and says what it promises."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("accumulation.py", r"20 batches, 5 updates"),
        ("averaged_model.py", r"20 students averaged"),
        ("lightning_fit.py", r"Classifier: \d+.*\nMeanTeacher: \d+"),
        ("own_loop.py", r"student: [789]\d\..*\nteacher: [789]\d\."),
        ("resume.py", r"resumed at step 17, identical at step 40"),
        ("take_over.py", r"20 updates, 10 of them here"),
        ("timm_style.py", r"\d+ tensors, momentum 0\.\d+"),
        ("transformers_trainer.py", r"the teacher's loss: \d\.\d+\nupdates: 4"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_example(name, says, tmp_path, monkeypatch, capsys):
    if name == "transformers_trainer.py":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert re.search(says, capsys.readouterr().out)


def test_the_distributed_example_on_two_ranks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", EXAMPLES / "ddp.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 ranks, one teacher: \w+", done.stdout), done.stdout


def test_every_example_is_run():
    (parametrize,) = (mark for mark in test_example.pytestmark if mark.name == "parametrize")
    assert {name for name, _ in parametrize.args[1]} | {"ddp.py"} == {path.name for path in EXAMPLES.glob("*.py")}
