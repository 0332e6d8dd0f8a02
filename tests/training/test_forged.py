"""A checkpoint that was edited, with its digest computed anew: each command works or refuses it in one line."""

import copy
import random

import pytest
import torch
from PIL import Image
from runs import SHORT, Killed, kill_at

from spatial_ensemble import UserError
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.evaluate import evaluate
from spatial_ensemble.training.export import export
from spatial_ensemble.training.predict import predict
from spatial_ensemble.training.run import train

CONFIG = SHORT.replace(
    steps=3, eval_every=2, checkpoint_every=1, optimizer="adamw", lr_schedule="constant", batch_size=10
)
EARLIER = {"step": 2, "skipped": 0, "seed": 7, "unit": "tensor", "buffers": "average", "update_every": 1}
WRONG = [None, True, 0, -7, 3, 1.5, "text", [], {}, [0.5, 0.5], torch.ones(()), torch.ones(3), (torch.ones(2), 1.0)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that ended after two of three steps, and what its checkpoint holds."""
    out = tmp_path_factory.mktemp("forged") / "run"
    with pytest.raises(Killed):
        train(CONFIG, out, progress=False, on_step=kill_at(2))
    return out, checkpoint.load(out / "last.ckpt")


def places(value, at=()):
    """The path of keys and indices to everything below `value`."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(value[key], (*at, key))


def forge(run, place, value):
    """Write the checkpoint with another value at a place, or without it if the value is `forge`."""
    out, content = run
    content = copy.deepcopy(content)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    if value is forge:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    torch.save({**content, "digest": checkpoint.digest(content)}, out / "last.ckpt")


def test_no_edit_ends_in_a_traceback(run, tmp_path):
    out, content = run
    path, chance, refused = out / "last.ckpt", random.Random(0), 0
    commands = (
        lambda: train(CONFIG, out, resume=True, progress=False),
        lambda: evaluate(path, "digits"),
        lambda: export(path, tmp_path / "weights"),
    )
    parts = {name: [place for place in places(content) if place[0] == name] for name in content}
    for number in range(78):
        place = chance.choice(list(parts.values())[number % len(parts)])
        for command in commands:
            forge(run, place, chance.choice([*WRONG, forge, forge]))  # before each: a resumed run writes a new one
            try:
                command()
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("optimizer", "param_groups", 0, "params"),
            [0],
            "holds the state of another optimizer: its groups hold other",
        ),
        (("optimizer", "param_groups"), [], "holds the state of another optimizer: its groups hold other parameters"),
        (("optimizer", "state", 0, "exp_avg"), torch.ones(3), "another optimizer: the state of parameter 0 has other"),
        (("optimizer", "state", 0, "exp_avg"), forge, "another optimizer: the state of parameter 0 has other tensors"),
        (("optimizer", "state", 99), {}, "holds the state of another optimizer"),
        (("running", "loss"), (torch.ones(2), 1.0), "content.running.loss is no sum of values"),
        (("running", "loss"), (torch.ones(()), 0), "content.running.loss is no sum of values"),
        (("teacher", "_extra_state"), EARLIER | {"step": 1}, "holds the weights of another network: its teacher has"),
        (("teacher", "_extra_state"), EARLIER | {"step": "2"}, "holds the weights of another network: its teacher has"),
        (
            ("teacher", "_extra_state"),
            EARLIER | {"seed": None},
            "holds the weights of another network",
        ),
        (("teacher", "_extra_state"), {"unit": "tensor"}, "holds the weights of another network"),
        (("teacher", "_extra_state"), torch.tensor([1, 1, 0, 7, 1, 1] + [0] * 10), "another network: its teacher has"),
        (
            ("teacher", "_extra_state"),
            torch.ones(3),
            "holds the weights of another network: not the state of a Teacher",
        ),
        (("teacher", "_extra_state"), [], "holds the weights of another network"),
        (("method", "student.head.bias"), "text", "holds the weights of another network"),
        (("data", "mean"), [0.5, 0.5], "need 1 values, one a channel"),
        (("step",), -1, "content.step or content.data.size is too small"),
    ],
)
def test_what_does_not_fit_is_named(run, place, value, message):
    forge(run, place, value)
    with pytest.raises(UserError, match=message):
        train(CONFIG, run[0], resume=True, progress=False)


def test_an_edit_that_fits_is_used(run, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    forge(run, ("data", "classes"), ["same"] * 10)
    assert [name for _, name, _ in predict(run[0] / "last.ckpt", tmp_path)] == ["same"]
    forge(run, ("seconds",), 0.0)
    assert train(CONFIG, run[0], resume=True, progress=False).steps_done == 1
