"""What a user gets from the package: its lowest versions, and the types that a type checker sees."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Where a name is Any, assert_type fails, and the ignored errors, which are expected, would be reported as unused.
A_USERS_PROGRAM = """
from typing import assert_type

import torch
from torch import nn

import spatial_ensemble
from spatial_ensemble import Smoothing, Teacher, cosine, distance, spatial_temporal_smoothing
from spatial_ensemble.smoothing.swap import Swap

student: nn.Module = nn.Linear(2, 3)
schedule = cosine(0.99, 1.0, 100)
assert_type(schedule(3), float)
rule = spatial_temporal_smoothing(momentum=schedule, preserve_prob=0.7)
assert_type(rule, Smoothing)
teacher = Teacher(student, rule, unit="channel")
assert_type(teacher, Teacher)
assert_type(spatial_ensemble.Teacher(student, rule), Teacher)
assert_type(spatial_ensemble.smoothing.Teacher(student, rule), Teacher)
assert_type(teacher.module, nn.Module)
assert_type(teacher.step, int)
assert_type(teacher.age(), dict[str, torch.Tensor])
assert_type(distance(teacher, student), dict[str, float])
with teacher.swap(student) as swap:
    assert_type(swap, Swap)
teacher.copy_to(student)

Teacher(student, 0.99)  # type: ignore[arg-type]
Teacher(student, rule, unit="row")  # type: ignore[arg-type]
teacher.update(rule)  # type: ignore[arg-type]
cosine("0.99", 1.0, 100)  # type: ignore[arg-type]
spatial_ensemble.Student  # type: ignore[attr-defined]
"""


def test_a_users_type_checker_sees_the_types(tmp_path):
    (tmp_path / "program.py").write_text(A_USERS_PROGRAM)
    options = ["--strict", "--config-file=", f"--python-executable={sys.executable}"]
    run = [sys.executable, "-m", "mypy", *options, "program.py"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr


def test_the_lowest_versions_that_are_tested_are_those_that_are_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = project["optional-dependencies"]
    for need in project["dependencies"] + extras["fast"] + extras["train"] + extras["dev"]:
        name, _, version = need.partition(">=")
        if name in lowest:
            assert re.match(rf"{re.escape(version)}\b", lowest[name]), need
    assert {"torch", "numba"} <= lowest.keys()
