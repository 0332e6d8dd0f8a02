"""Several processes, as torchrun starts them."""

import json
import shutil
from pathlib import Path

import pytest
import ranked

from spatial_ensemble.smoothing.state import unpack
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.run import train


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of what two processes did, and what each of them saw."""
    from torch.distributed.run import main

    out = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        main(["--standalone", "--nproc-per-node=2", str(Path(ranked.__file__)), str(out)])
    return out, [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("method", ["fixmatch", "mean_teacher"])  # the second's teacher has statistics of its own
def test_two_processes_keep_one_teacher(two, method):
    """Both have the same teacher to the bit and measure the same, and one process can go on from their checkpoint."""
    out, seen = two
    assert len(seen[0][method]) == 2
    assert seen[0][method] == seen[1][method]
    result = train(ranked.CONFIG.replace(method=method, steps=6), out / method, resume=True, progress=False)
    assert result.steps_done == 2
    assert result.history[:2] == seen[0][method]
    assert unpack(checkpoint.load(result.checkpoint)["teacher"]["_extra_state"])["step"] == 6


def test_two_processes_share_a_batch_as_one_process_has_it_whole(two, tmp_path):
    """Also where they, or one process, go on in the middle of what is averaged."""
    out, seen = two
    expected = [pytest.approx(row, rel=1e-4) for row in train(ranked.PLAIN, tmp_path / "one", progress=False).history]
    (tmp_path / "killed").mkdir()
    shutil.copy(out / "kept.ckpt", tmp_path / "killed" / "last.ckpt")
    result = train(ranked.PLAIN, tmp_path / "killed", resume=True, progress=False)
    assert (result.steps_done, result.history) == (1, expected)
    for rank in (0, 1):
        assert seen[rank]["straight"] == expected
        assert seen[rank]["resumed"] == expected


def test_a_metric_need_not_be_reported_by_each_process_at_each_step(two):
    for seen in two[1]:
        (row,) = seen["uneven"]
        assert (row["a"], row["b"]) == (4.0, 5.5)
        assert row["images"] == ranked.CONFIG.run.batch_size / 2  # of a step in one process


def test_what_is_not_finite_in_one_process_ends_all(two):
    for seen in two[1]:
        assert seen["broken"].startswith("the weights are non-finite after step 3")


def test_one_process_reads_the_data_before_the_others_and_its_mistake_is_theirs(two):
    first, second = two[1]
    assert (first["slow"], second["slow"]) == ([None, [0]], [None, [1]])
    assert (first["first"], second["first"]) == (["no network in 0", [0]], ["no network in 0", []])
    assert (first["second"], second["second"]) == (["no network in 1", [0]], ["no network in 1", [1]])
