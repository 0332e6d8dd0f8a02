"""A sharded checkpoint goes on at any number of ranks with the same masks."""

import warnings
from pathlib import Path

import pytest
import torch.distributed.checkpoint as checkpoint
from networks import RULE, UNITS, State, differences, expected, gathered, replay, uneven
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from world import World

from spatial_ensemble import Teacher

HALF = 3  # states[0] builds the teacher, two updates come before the checkpoint and three after


def rank_save(states: list[State], unit: str, path: Path) -> None:
    student = uneven()
    teacher = Teacher(student, RULE, unit=unit, seed=3)
    fully_shard(student), fully_shard(teacher.module)
    replay(teacher, student, states[1:HALF])
    checkpoint.save({"teacher": teacher}, checkpoint_id=path / "object")
    checkpoint.save({"teacher": get_model_state_dict(teacher)}, checkpoint_id=path / "state")


def rank_resume(states: list[State], unit: str, path: Path) -> list[object]:
    whole = expected(states, unit=unit, seed=3)
    answers: list[object] = []
    for way in ("object", "state"):
        student = uneven(seed=8)
        teacher = Teacher(student, RULE, unit=unit, seed=9)  # the weights and the seed come from the checkpoint
        fully_shard(student), fully_shard(teacher.module)
        if way == "object":
            checkpoint.load({"teacher": teacher}, checkpoint_id=path / way)
        else:
            state = {"teacher": get_model_state_dict(teacher)}
            checkpoint.load(state, checkpoint_id=path / way)
            set_model_state_dict(teacher, state["teacher"])
        answers.append(teacher.step)
        replay(teacher, student, states[HALF:])
        answers.append(differences(gathered(teacher.module), whole.module.state_dict()))
        answers.append(teacher.fingerprint() == whole.fingerprint())
    return answers


@pytest.mark.parametrize("unit", UNITS)
def test_written_on_4_ranks_it_goes_on_with_4_2_and_1(
    worlds: dict[int, World], states: list[State], unit: str, tmp_path: Path
):
    worlds[4](rank_save, states, unit, tmp_path)
    for world in worlds.values():
        assert world(rank_resume, states, unit, tmp_path) == [[HALF - 1, [], True] * 2] * world.size

    student = uneven(seed=8)
    teacher = Teacher(student, RULE, unit=unit, seed=9)
    with warnings.catch_warnings():
        warnings.filterwarnings(  # what torch says of a load by one process
            "ignore", "torch.distributed is .*unavailable or uninitialized, assuming the intent is to load in a"
        )
        checkpoint.load({"teacher": teacher}, checkpoint_id=tmp_path / "object")
    assert teacher.step == HALF - 1
    replay(teacher, student, states[HALF:])
    whole = expected(states, unit=unit, seed=3)
    assert differences(teacher.module.state_dict(), whole.module.state_dict()) == []
    assert teacher.fingerprint() == whole.fingerprint()
