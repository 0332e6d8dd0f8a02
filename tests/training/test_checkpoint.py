"""Checkpoints are written whole or not at all, and what is none is refused in one line."""

import copy
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch

from spatial_ensemble import UserError
from spatial_ensemble.training import checkpoint

CONTENT = {
    "config": {"method": "linear", "data": "digits", "network": "small", "labels": None, "lr": 0.03, "norm": True},
    "step": 3,
    "method": OrderedDict({"weight": torch.linspace(0, 1, 40).view(8, 5), "count": torch.tensor(7)}),
    "teacher": {"weight": torch.full((8, 5), 0.5, dtype=torch.bfloat16), "_extra_state": {"step": 3, "unit": "tensor"}},
    "optimizer": {
        "state": {0: {"momentum_buffer": torch.ones(8, 5)}, 1: {"momentum_buffer": None}},
        "param_groups": [{"lr": 0.03, "nesterov": True, "params": [0, 1]}],
    },
    "history": [{"step": 2, "teacher_accuracy": 97.5, "student_accuracy": math.nan, "loss": 0.5}],
    "running": {"loss": (torch.tensor(1.25, dtype=torch.float64), 1.0)},
    "seconds": 1.5,
    "data": {
        "name": "digits",
        "classes": ["0", "1"],
        "channels": 1,
        "size": 8,
        "mean": [0.5],
        "std": [0.25],
        "digest": "0" * 32,
    },
}
CONTENT["method"]._metadata = {"": {"version": 2}}

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from spatial_ensemble.training.checkpoint import write_whole

def write(temporary):
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

write_whole(Path(sys.argv[1]), write)
"""


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "last.ckpt", CONTENT)
    content = checkpoint.load(tmp_path / "last.ckpt")
    assert content.pop("format") == 2
    assert same(content, CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def same(one, other):
    """Written apart from the digest: equal in every type, key, number and bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        pairs = [(one[key], other.get(key, same)) for key in one]
        pairs.append((getattr(one, "_metadata", None), getattr(other, "_metadata", None)))
        return list(one) == list(other) and all(same(*pair) for pair in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return repr(one) == repr(other)


def test_damaged_bytes_are_refused_or_load_the_same(tmp_path):
    path, chance = tmp_path / "last.ckpt", random.Random(0)
    checkpoint.save(path, CONTENT)
    whole, refused = path.read_bytes(), 0
    for number in range(300):
        damaged = bytearray(whole)
        for _ in range(1 + number % 4):
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            content = checkpoint.load(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert same(content, {**CONTENT, "format": 2})
    assert refused > 100  # the rest hit the padding between records


def test_a_digest_tells_types_shapes_and_order_apart():
    metadata = OrderedDict(a=1)
    metadata._metadata = {"": {"version": 2}}
    zeros = torch.zeros(2, 3)
    contents = [
        *(
            1,
            1.0,
            True,
            "1",
            b"1",
            None,
            "None",
            [],
            (),
            {},
            [1],
            (1,),
            [[1]],
            [1, None],
            {"a": 1},
            {"a": [1]},
            {1: "a"},
        ),
        *({"a": 1, "b": 2}, {"b": 2, "a": 1}, metadata, torch.float32, "torch.float32", ["a", "b"], ["a;str 'b'"]),
        *(zeros, zeros.double(), zeros.int(), zeros.T.contiguous(), zeros.view(6), -zeros, zeros[0], torch.tensor(0.0)),
    ]
    assert len({checkpoint.digest(content) for content in contents}) == len(contents)
    # ... but neither strides, nor gradients, nor being a Parameter.
    assert checkpoint.digest(torch.nn.Parameter(zeros.T)) == checkpoint.digest(zeros.T.contiguous())
    with pytest.raises(UserError, match="a checkpoint cannot hold a set: use tensors, numbers, str, list or dict"):
        checkpoint.digest({"a": {1, 2}})


WRONG = [None, True, 8, -1.5, "text", b"x", [], {}, (torch.ones(()), "x"), torch.ones(3), OrderedDict(step=1)]


def places(value, at=()):
    """The path of keys and indices to everything below `value`."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(value[key], (*at, key))


def edits(number):
    """What a checkpoint holds, with one value anywhere deleted or replaced by another, as often."""
    whole, chance = {**CONTENT, "format": 2}, random.Random(0)
    everywhere = list(places(whole))
    while number:
        content, place = copy.deepcopy(whole), chance.choice(everywhere)
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        if chance.random() < 0.4:
            del holder[place[-1]]
        else:
            holder[place[-1]] = chance.choice(WRONG)
        if not same(content, whole):
            number -= 1
            yield content


def test_an_edited_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, CONTENT)
    stored = torch.load(path, weights_only=True)["digest"]
    for content in edits(600):
        torch.save({**content, "digest": stored}, path)
        with pytest.raises(UserError, match=r"last\.ckpt") as error:
            checkpoint.load(path)
        assert "\n" not in str(error.value)


def use(content):
    """What readers do with the parts of a checkpoint."""
    for name in ("config", "method", "teacher"):
        dict(**content[name])
    for group in content["optimizer"]["param_groups"]:
        list(map(content["optimizer"]["state"].get, group["params"]))
    for row in content["history"]:
        assert len([f"{value:.2f}" for value in (row["step"], row["teacher_accuracy"], *row.values())]) > 2
    for total, count in content["running"].values():
        total.to(torch.float64).div(count + content["seconds"] + content["step"])
    data = content["data"]
    torch.tensor(data["mean"]).sub(torch.tensor(sum(data["std"]))).expand(data["channels"] * data["size"], -1)
    ", ".join([data["name"], data["digest"], *data["classes"]])


def test_what_does_not_fit_the_schema_is_refused_whatever_its_digest(tmp_path):
    path, refused = tmp_path / "last.ckpt", 0
    for content in edits(600):
        torch.save({**content, "digest": checkpoint.digest(content)}, path)
        try:
            use(checkpoint.load(path))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "3"}, "content.step is str, expected int"),
        ({"step": True}, "content.step is bool, expected int"),
        ({"seconds": torch.ones(2)}, "content.seconds is Tensor, expected float"),
        ({"extra": 1}, "content has the unknown key 'extra'"),
        ({"data": {}}, "content.data has no 'name'"),
        ({"history": [{}]}, "content.history[0] has no 'step'"),
        ({"running": {"loss": (1,)}}, "content.running.loss has 1 items, expected 2"),
        ({"running": {"loss": (1.0, 1)}}, "content.running.loss[0] is float, expected Tensor"),
        ({"config": CONTENT["config"] | {3: "x"}}, "content.config has the unknown key 3"),
    ],
)
def test_a_misfit_is_named(tmp_path, change, message):
    content = {**CONTENT, **change, "format": 2}
    torch.save({**content, "digest": checkpoint.digest(content)}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=re.escape(f"does not hold what a run writes: {message}") + "$"):
        checkpoint.load(tmp_path / "last.ckpt")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_whole(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_in_the_middle_of_a_write_leaves_the_last_whole_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, CONTENT)
    whole = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, os.fspath(path)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == whole


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_checkpoint_cut_short_is_refused(tmp_path, part):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, CONTENT)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(UserError, match="is not a checkpoint, or is cut short or damaged"):
        checkpoint.load(path)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_what_is_no_checkpoint_is_refused_and_no_code_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match="is not a checkpoint"):
        checkpoint.load(path)
    torch.save(Attack(), path)
    with pytest.raises(UserError, match="is not a checkpoint"):
        checkpoint.load(path)
    assert not (tmp_path / "attacked").exists()
    noise = [bytes(torch.randint(256, (size,), generator=torch.Generator().manual_seed(size))) for size in range(1, 60)]
    for content in (b"text", b"\x80\x02}q\x00.", *noise):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a checkpoint"):
            checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="is not a checkpoint of spatial-ensemble"):
        checkpoint.load(path)
    for version in (1, 99):
        torch.save({**CONTENT, "format": version}, path)
        with pytest.raises(UserError, match=f"has format {version}, this version reads format 2: use the version"):
            checkpoint.load(path)


def test_a_missing_checkpoint_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "none.ckpt")
    with pytest.raises(UserError, match="is a folder, not a checkpoint"):
        checkpoint.load(tmp_path)


def test_a_full_disk_is_one_clear_error(tmp_path):
    resource = pytest.importorskip("resource", reason="needs the limits of POSIX")
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, CONTENT)
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # no file grows beyond
    try:
        with pytest.raises(OSError, match=r"last\.ckpt cannot be written; is the disk full\?"):
            checkpoint.save(path, CONTENT | {"method": {"weight": torch.ones(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
