"""A training's use of the core, in an environment that holds torch and the installed package and nothing else."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import spatial_ensemble
from spatial_ensemble import Teacher, spatial_temporal_smoothing

assert find_spec("numba") is None and find_spec("numpy") is None
assert Path(__file__).parents[1] not in Path(spatial_ensemble.__file__).parents

student = nn.Linear(4, 3)
for unit in ("layer", "tensor", "channel", "element"):
    teacher = Teacher(student, spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.7), unit=unit)
    teacher.update(student)
    loaded = Teacher(nn.Linear(4, 3), teacher.smoothing, unit=unit)
    loaded.load_state_dict(teacher.state_dict())
    assert loaded.fingerprint() == teacher.fingerprint()
    with teacher.swap(student):
        student(torch.ones(1, 4))
