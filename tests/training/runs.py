"""A short run, its sudden end, and whether two runs came to the same."""

import torch

from spatial_ensemble.methods.options.fixmatch import FixMatchOptions
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.config import Config, ImagesConfig, OptimConfig, RunConfig, TeacherConfig

SHORT = Config(
    "fixmatch",
    ImagesConfig("digits", labels=20),
    teacher=TeacherConfig(momentum=0.99),
    optim=OptimConfig(lr_schedule="fixmatch"),
    run=RunConfig(steps=30, batch_size=10, eval_every=10),
    options=FixMatchOptions(unlabelled_ratio=1),
)


class Killed(BaseException):
    """As SIGKILL leaves no time to tidy up, so nothing may catch this."""


def kill_at(step):
    def on_step(done):
        if done == step:
            raise Killed

    return on_step


def assert_equal(first, second, where="checkpoint"):
    """Equal in every tensor, number and name, to the bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def without_time(path):
    content = checkpoint.load(path)
    del content["seconds"]
    return content
