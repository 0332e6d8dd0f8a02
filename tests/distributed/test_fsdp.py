"""FSDP2: every rank smooths its shard alone, and together they hold the teacher that one process would have."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from networks import (
    RULE,
    UNITS,
    State,
    batch,
    differences,
    expected,
    gathered,
    group_norm,
    local,
    put,
    replay,
    sgd,
    train_step,
    trains_shards,
    uneven,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from world import World

from spatial_ensemble import Teacher, distance, fraction_replaced

CASES = [(unit, buffers, None) for unit in UNITS for buffers in ("average", "copy", "keep")]
CASES += [("layer", "follow", None), ("tensor", "average", torch.bfloat16), ("element", "copy", torch.float16)]


def shard(module: nn.Module, **options: object) -> nn.Module:
    fully_shard(module.body, **options)
    return fully_shard(module, **options)


def sharded_pair(build: str = "teacher first", **options: object) -> tuple[nn.Module, Teacher]:
    if build == "teacher first":
        student = uneven()
        teacher = Teacher(student, RULE, **options)
        shard(teacher.module)
        return shard(student), teacher
    student = shard(uneven())
    return student, Teacher(student, RULE, **options, module=shard(uneven(seed=1)))


def rank_replay(states: list[State], unit: str, buffers: str, dtype: torch.dtype | None) -> dict[str, list[str]]:
    whole = expected(states, unit=unit, buffers=buffers, seed=3, dtype=dtype)
    found = {}
    for build in ("teacher first", "ready module"):
        student, teacher = sharded_pair(build, unit=unit, buffers=buffers, seed=3, dtype=dtype)
        replay(teacher, student, states[1:])
        found[build] = differences(gathered(teacher.module), whole.module.state_dict())
    return found


@pytest.mark.parametrize(("unit", "buffers", "dtype"), CASES)
def test_gathered_teacher_equals_that_of_one_process(
    world: World, states: list[State], unit: str, buffers: str, dtype: torch.dtype | None
):
    assert world(rank_replay, states, unit, buffers, dtype) == [{"teacher first": [], "ready module": []}] * world.size


def rank_train() -> list[object]:
    """Real training in bfloat16 on float32 shards, in which the teacher answers at every step."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    student, plain = uneven(norm=group_norm), uneven(norm=group_norm)
    options = {"unit": "element"}
    teacher, whole = Teacher(student, RULE, **options), Teacher(plain, RULE, **options)
    shard(student, mp_policy=policy), shard(teacher.module, mp_policy=policy)
    with torch.no_grad():
        student(batch(99))  # an evaluation before the first step leaves the root unsharded
    teacher.update(student)
    put(plain, gathered(student))
    whole.update(plain)
    optimizer = sgd(student)
    kinds = set()
    for step in range(3):
        teacher(batch(step))
        kinds |= {type(p).__name__ for p in teacher.module.parameters()}
        train_step(student, optimizer, batch(step, dist.get_rank()))
        teacher.update(student)
        plain.load_state_dict(gathered(student))
        whole.update(plain)
    moved = not local(teacher.module.body.weight).equal(local(student.body.weight))
    return [kinds, moved, differences(gathered(teacher.module), whole.module.state_dict())]


@trains_shards
def test_training_in_mixed_precision_with_a_teacher_that_answers(world: World):
    # The kinds prove the danger: between its answer and the update the teacher's root holds gathered weights.
    assert world(rank_train) == [[{"DTensor", "Parameter"}, True, []]] * world.size


def rank_whole_teacher() -> list[str]:
    """`fully_shard` on the Teacher itself, in place of its module: its forward gathers the root's weights."""
    student, plain = uneven(norm=group_norm), uneven(norm=group_norm)
    teacher, whole = Teacher(student, RULE, unit="element"), Teacher(plain, RULE, unit="element")
    shard(student), fully_shard(teacher)
    plans = set()
    for step in range(3):
        teacher(batch(step))
        with torch.no_grad():
            for parameter in student.parameters():
                local(parameter).add_(0.1)
        teacher.update(student)
        plans.add(teacher._plan)
        put(plain, gathered(student))
        whole.update(plain)
    assert len(plans) == 1  # gathered weights are put back, not planned for
    assert teacher.verify_ranks() == {} and teacher.age().keys() == whole.age().keys()
    return differences(gathered(teacher.module), whole.module.state_dict())


def test_a_teacher_may_be_sharded_as_a_whole(worlds: dict[int, World]):
    assert worlds[2](rank_whole_teacher) == [[]] * 2


def rank_replaced() -> list[str]:
    """Parameters whose local tensors are replaced between two updates, as `module.to` replaces them."""
    student, plain = uneven(norm=group_norm), uneven(norm=group_norm)
    teacher, whole = Teacher(student, RULE, unit="element"), Teacher(plain, RULE, unit="element")
    shard(teacher.module), shard(student)
    for module in (student, teacher.module):
        teacher.update(student), whole.update(plain)
        for parameter in module.parameters():
            parameter._local_tensor = local(parameter).clone()
        with torch.no_grad():
            for parameter in student.parameters():
                local(parameter).add_(0.1)
        put(plain, gathered(student))
    teacher.update(student), whole.update(plain)
    return differences(gathered(teacher.module), whole.module.state_dict())


def test_local_tensors_that_are_replaced_are_the_ones_averaged(worlds: dict[int, World]):
    assert worlds[2](rank_replaced) == [[]] * 2


def rank_toggled() -> list[str]:
    """A student that is frozen whenever `update` is called, as one of two networks that train in turns."""
    student, plain = uneven(norm=group_norm), uneven(norm=group_norm)
    teacher, whole = Teacher(student, RULE, unit="element"), Teacher(plain, RULE, unit="element")
    shard(teacher.module), shard(student)
    teacher.update(student.requires_grad_(False)), whole.update(plain)
    optimizer = sgd(student.requires_grad_(True))
    for step in range(3):
        train_step(student.requires_grad_(True), optimizer, batch(step))
        optimizer.zero_grad()
        teacher.update(student.requires_grad_(False))
        put(plain, gathered(student))
        whole.update(plain)
    return differences(gathered(teacher.module), whole.module.state_dict())


@trains_shards
def test_shards_that_are_trained_and_frozen_at_the_update_are_averaged(worlds: dict[int, World]):
    assert worlds[2](rank_toggled) == [[]] * 2


def rank_moved(states: list[State]) -> tuple[object, ...]:
    """`to` and its like give the shards new memory, in the same parameters as before."""
    student, teacher = sharded_pair(unit="element", seed=3)
    plain = uneven()
    whole = Teacher(plain, RULE, unit="element", seed=3)
    same = []
    for state in states[1:]:
        for owner in (student, teacher.module):
            parameter, memory = owner.out.weight, local(owner.out.weight).untyped_storage()  # held, or it could return
            owner.double().float()
            same.append(owner.out.weight is parameter and local(parameter).data_ptr() == memory.data_ptr())
        put(student, state), put(plain, state)
        teacher.update(student), whole.update(plain)
    return any(same), differences(gathered(teacher.module), whole.module.state_dict())


def test_shards_that_moved_in_memory_are_followed(worlds: dict[int, World], states: list[State]):
    assert worlds[2](rank_moved, states) == [(False, [])] * 2


def rank_same(states: list[State]) -> tuple[object, ...]:
    student, teacher = sharded_pair(unit="channel", seed=3)
    replay(teacher, student, states[1:])
    teacher(batch(0))
    whole = expected(states, unit="channel", seed=3)
    ages, whole_ages = teacher.age(), whole.age()
    teacher(batch(0))
    plain = uneven()
    put(plain, states[-2])
    put(student, states[-2])
    distances = distance(teacher, student)
    teacher(batch(0))
    return (
        teacher.fingerprint() == whole.fingerprint(),
        fraction_replaced(teacher) == fraction_replaced(whole),
        distances == pytest.approx(distance(whole, plain), rel=1e-5) and max(distances.values()) > 0,
        ages.keys() == whole_ages.keys() and all(ages[name].equal(whole_ages[name]) for name in ages),
        len(ages["body.weight"]),
        teacher.verify_ranks(),
    )


def test_fingerprint_and_diagnostics_are_the_global_ones(world: World, states: list[State]):
    assert world(rank_same, states) == [(True, True, True, True, 10, {})] * world.size


def rank_bytes() -> tuple[int, int]:
    student = fully_shard(nn.Linear(64, 4 * 64, bias=False))
    teacher = Teacher(student, RULE, unit="element", module=fully_shard(nn.Linear(64, 4 * 64, bias=False)))
    for _ in range(2):
        teacher.update(student)
        teacher(torch.ones(1, 64))
        teacher.update(student)
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in map(local, teacher.module.parameters())
    }
    saved = io.BytesIO()
    torch.save({name: local(value) for name, value in teacher.state_dict().items() if name != "_extra_state"}, saved)
    return sum(held.values()), len(saved.getvalue())


def test_a_rank_holds_its_shard_only(world: World):
    shard_bytes = 64 * 4 * 64 * 4 // world.size
    for held, saved in world(rank_bytes):
        assert held == shard_bytes
        assert shard_bytes < saved < shard_bytes + 4096


def rank_communication(states: list[State]) -> tuple[int, int]:
    first, second = shard(uneven()), shard(uneven())
    with CommDebugMode() as silent:
        teacher = Teacher(first, RULE, unit="channel", module=second)
        replay(teacher, first, states[1:])
        teacher.age()
        teacher.state_dict()
    with CommDebugMode() as loud:
        teacher.fingerprint()
    return silent.get_total_counts(), loud.get_total_counts()


def test_construction_and_update_communicate_nothing(world: World, states: list[State]):
    for silent, loud in world(rank_communication, states):
        assert silent == 0
        assert loud > 0  # the counter does count


def rank_alone(states: list[State]) -> int:
    student, teacher = sharded_pair(unit="element")
    if dist.get_rank() == 0:
        replay(teacher, student, states[1:])  # would wait for ever if it needed the others
    return teacher.step


def test_one_rank_can_update_while_the_others_do_not(world: World, states: list[State]):
    assert world(rank_alone, states) == [len(states) - 1] + [0] * (world.size - 1)


def rank_nonfinite(on_nonfinite: str) -> tuple[object, ...]:
    student, teacher = sharded_pair(on_nonfinite=on_nonfinite)
    teacher.update(student)
    before = teacher.fingerprint()
    if dist.get_rank() == dist.get_world_size() - 1:
        local(student.body.weight).data[0, 0] = torch.inf  # one shard of one rank
    message = ""
    try:
        teacher.update(student)
    except ValueError as error:
        message = str(error)
    return message, teacher.step, teacher.skipped, teacher.fingerprint() == before


def test_a_shard_that_is_not_finite_raises_on_all_ranks(world: World):
    message = "the student's tensor 'body.weight' is non-finite at step 1; the teacher is unchanged"
    assert world(rank_nonfinite, "raise") == [(message, 1, 0, True)] * world.size


def test_a_shard_that_is_not_finite_is_skipped_by_all_ranks(world: World):
    assert world(rank_nonfinite, "skip") == [("", 1, 1, True)] * world.size


def rank_refusals() -> list[str]:
    student = shard(uneven())
    first_generation = FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu"))
    attempts = [
        lambda: Teacher(student, RULE),
        lambda: Teacher(student, RULE, module=uneven()),
        lambda: Teacher(first_generation, RULE),
        lambda: Teacher(first_generation, RULE, module=first_generation),
    ]
    messages = []
    for attempt in attempts:
        with pytest.raises(ValueError) as caught:
            attempt()
        messages.append(str(caught.value))
    with pytest.raises(AssertionError):
        copy.deepcopy(student)  # what the first message spares the user
    return messages


def test_what_cannot_work_is_refused_with_the_ways_that_do(worlds: dict[int, World]):
    for copied, unlike, *first_generation in worlds[2](rank_refusals):
        assert "teacher = Teacher(student, ...); fully_shard(student); fully_shard(teacher.module)" in copied
        assert "Teacher(student, ..., module=ready_sharded_copy)" in copied
        assert "'filters.weight' has shape (5, 1, 3) sharded (Shard(dim=0),)" in unlike
        assert "must have the same shape and sharding" in unlike
        for message in first_generation:
            assert "cannot smooth a FullyShardedDataParallel module" in message
            assert "by torch.distributed.fsdp.fully_shard" in message


def rank_hybrid(states: list[State]) -> tuple[object, ...]:
    """Two replicas of two shards each: ranks 0 and 2 hold the same, as do 1 and 3."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    student = uneven()
    teacher = Teacher(student, RULE, unit="element", seed=3)
    shard(student, mesh=mesh), shard(teacher.module, mesh=mesh)
    replay(teacher, student, states[1:])
    whole = expected(states, unit="element", seed=3)
    agree = teacher.verify_ranks()
    if dist.get_rank() == 3:
        local(teacher.module.body.weight)[0, 0] += 1
    named, mended, after = teacher.verify_ranks(), teacher.repair(), teacher.verify_ranks()
    return agree, named, mended, after, differences(gathered(teacher.module), whole.module.state_dict())


def test_replicas_of_shards_are_compared_and_mended(world4: World, states: list[State]):
    deviation = {3: ["body.weight"]}
    assert world4(rank_hybrid, states) == [({}, deviation, deviation, {}, [])] * 4
