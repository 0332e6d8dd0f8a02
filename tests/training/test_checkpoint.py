"""Checkpoints are written whole or not at all, and what is none is refused in one line."""

import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch

from spatial_ensemble import UserError
from spatial_ensemble.training import checkpoint

CONTENT = {name: {} for name in checkpoint.KEYS - {"format"}} | {"step": 3, "method": {"weight": torch.ones(2)}}

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
    assert content["step"] == 3
    assert torch.equal(content["method"]["weight"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


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
    with pytest.raises(UserError, match="is not a checkpoint, or is cut short"):
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
    torch.save({**CONTENT, "format": 99}, path)
    with pytest.raises(UserError, match="has format 99, this version reads format 1"):
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
