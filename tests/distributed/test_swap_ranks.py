"""FSDP2 and DistributedDataParallel: an evaluation with the teacher's weights leaves the training as it was."""

import pytest
import torch
from networks import RULE, batch, copied, differences, gathered, group_norm, sgd, train_step, trains_shards, uneven
from test_fsdp import shard
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from world import World

from spatial_ensemble import Teacher
from spatial_ensemble.integrations.optimizer import update_after_step


def pair(wrapper: str) -> tuple[nn.Module, Teacher]:
    student = uneven(norm=group_norm)
    teacher = Teacher(student, RULE)
    if wrapper == "ddp":
        return DistributedDataParallel(student), teacher
    options = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)} if wrapper == "fsdp, bfloat16" else {}
    shard(teacher.module, **options)
    return shard(student, **options), teacher


def rank_evaluate(wrapper: str) -> list[object]:
    (student, teacher), (plain, expected) = pair(wrapper), pair(wrapper)
    optimizer, plain_optimizer = sgd(student), sgd(plain)
    found: list[object] = []
    for step in range(3):
        train_step(student, optimizer, batch(step))
        train_step(plain, plain_optimizer, batch(step))
        teacher.update(student), expected.update(plain)
        with teacher.swap(student), torch.no_grad():
            answer = student(batch(9))  # leaves the root of a sharded student gathered
        with torch.no_grad():
            found.append([answer.equal(teacher(batch(9))), answer.equal(student(batch(9)))])
    network, plain_network = (m.module if wrapper == "ddp" else m for m in (student, plain))
    found.append(differences(gathered(network), gathered(plain_network)))
    found.append(differences(gathered(teacher.module), gathered(expected.module)))
    before = copied(gathered(teacher.module))
    teacher.copy_to(student)
    found.append(differences(gathered(network), before))
    return found


@pytest.mark.parametrize(
    "wrapper", [pytest.param("fsdp", marks=trains_shards), pytest.param("fsdp, bfloat16", marks=trains_shards), "ddp"]
)
def test_an_evaluation_with_the_teacher_leaves_the_training_as_it_was(worlds: dict[int, World], wrapper: str):
    assert worlds[2](rank_evaluate, wrapper) == [[[True, False]] * 3 + [[], [], []]] * 2


def rank_empty_steps() -> tuple[object, ...]:
    student = nn.Linear(6, 1)  # one row: all ranks but the first hold nothing, and no gradients
    teacher = Teacher(student, RULE)
    fully_shard(student), fully_shard(teacher.module)
    optimizer = sgd(student)
    update_after_step(optimizer, teacher, student)
    get_optimizer_state_dict(student, optimizer)
    before = teacher.step
    optimizer.param_groups[0]["lr"] = 0.0  # the first step of a warm-up
    train_step(student, optimizer, batch(0))
    return before, teacher.step


def test_sharded_too_empty_steps_are_not_counted_and_warm_ups_are(world: World):
    assert world(rank_empty_steps) == [(0, 1)] * world.size
