"""DistributedDataParallel: every rank updates its own teacher from equal students, and all stay equal to the bit."""

import pytest
import torch
import torch.distributed as dist
from networks import RULE, UNITS, batch, copied, differences, group_norm, local, sgd, train_step, uneven
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from world import World

from spatial_ensemble import Teacher

STEPS = 20


def rank_train(unit: str) -> tuple[object, ...]:
    student = DistributedDataParallel(uneven(norm=group_norm))
    teacher = Teacher(student, RULE, unit=unit, seed=7)
    optimizer, states = sgd(student), []
    for step in range(STEPS):
        train_step(student, optimizer, batch(step, dist.get_rank()))  # data of this rank
        teacher.update(student)
        states.append(copied(student.module.state_dict()))
    return copied(teacher.module.state_dict()), states, teacher.fingerprint(), teacher.verify_ranks()


@pytest.mark.parametrize("unit", UNITS)
def test_teachers_are_equal_on_all_ranks_and_in_one_process(world: World, unit: str):
    (first, states, fingerprint, deviations), *others = world(rank_train, unit)
    for other, _, other_fingerprint, other_deviations in others:
        assert differences(first, other) == []
        assert (other_fingerprint, other_deviations) == (fingerprint, {})
    assert deviations == {}
    student = uneven(norm=group_norm)
    alone = Teacher(student, RULE, unit=unit, seed=7)
    for state in states:
        student.load_state_dict(state)
        alone.update(student)
    assert differences(alone.module.state_dict(), first) == []
    assert alone.fingerprint() == fingerprint
    assert differences(states[0], states[-1]) != []  # the students did move


def rank_train_in_part(unit: str) -> tuple[object, ...]:
    network = uneven(norm=group_norm)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("out" in name)
    student = DistributedDataParallel(network)
    whole = Teacher(student, RULE, unit=unit, seed=7)
    teacher = Teacher(student, RULE, unit=unit, seed=7, trainable_only=True)
    optimizer = sgd(student)
    for step in range(3):
        train_step(student, optimizer, batch(step, dist.get_rank()))
        teacher.update(student), whole.update(student)
    different = differences(teacher.module.state_dict(), whole.module.state_dict())
    if dist.get_rank() == 0:
        flip_one_bit(teacher.module.out.weight)
    found = teacher.repair()
    fully_shard(network), fully_shard(teacher.module)
    with pytest.raises(ValueError, match="trainable_only=True does not support fully_shard"):
        teacher.update(network)
    with pytest.raises(ValueError, match="trainable_only=True does not support fully_shard"):
        Teacher(network, RULE, trainable_only=True)
    return different, found, len(teacher._shared)


@pytest.mark.parametrize("unit", UNITS)
def test_frozen_parameters_are_shared_on_every_rank(worlds: dict[int, World], unit: str):
    for different, found, shared in worlds[2](rank_train_in_part, unit):
        assert (different, found) == ([], {1: ["again.weight"]})  # the first name of the tied weight
        assert shared > 0


def flip_one_bit(tensor: torch.Tensor) -> None:
    tensor.view(-1).view(torch.uint8)[0] ^= 1


def rank_flip(culprit: int) -> tuple[object, ...]:
    student = uneven()
    teacher = Teacher(student, RULE)
    teacher.update(student)
    right = teacher.fingerprint()
    if dist.get_rank() == culprit:
        flip_one_bit(teacher.module.out.weight)
        flip_one_bit(teacher.module.norm.num_batches_tracked)
    wrong = teacher.fingerprint()
    return (
        teacher.verify_ranks(),
        teacher.repair(),
        teacher.verify_ranks(),
        wrong == right,
        teacher.fingerprint() == right,
    )


@pytest.mark.parametrize("culprit", [0, 3])
def test_one_flipped_bit_is_found_and_mended_by_the_majority(world4: World, culprit: int):
    deviation = {culprit: ["again.weight", "norm.num_batches_tracked"]}  # a tied weight goes by the first of its names
    for rank, answer in enumerate(world4(rank_flip, culprit)):
        assert answer == (deviation, deviation, {}, rank != culprit, True)


@pytest.mark.parametrize("culprit", [0, 1])
def test_of_two_ranks_the_lowest_is_taken_to_be_right(worlds: dict[int, World], culprit: int):
    deviation = {1: ["again.weight", "norm.num_batches_tracked"]}
    for rank, (named, mended, after, same, right) in enumerate(worlds[2](rank_flip, culprit)):
        assert (named, mended, after, same) == (deviation, deviation, {}, rank != culprit)
        assert right == (culprit == 1)  # two ranks cannot tell who is wrong; they do agree again


def rank_flips(culprits: list[int]) -> tuple[object, ...]:
    teacher = Teacher(nn.Linear(3, 1, bias=False), RULE)
    right = teacher.module.weight.fill_(1).clone()
    if dist.get_rank() in culprits:
        flip_one_bit(teacher.module.weight)
    return teacher.verify_ranks(), teacher.repair(), teacher.verify_ranks(), teacher.module.weight.equal(right)


@pytest.mark.parametrize(
    ("culprits", "named", "right"), [([2, 3], [2, 3], True), ([0, 1], [2, 3], False), ([0, 2, 3], [1], False)]
)
def test_the_majority_is_right_and_of_two_halves_that_of_the_lowest_rank(
    world4: World, culprits: list[int], named: list[int], right: bool
):
    deviation = {rank: ["weight"] for rank in named}
    assert world4(rank_flips, culprits) == [(deviation, deviation, {}, right)] * 4


def rank_parts() -> dict[int, list[str]]:
    """Each rank holds another part of a model, with a tensor named weight of another size, shape or dtype."""
    parts = [nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False), nn.PReLU(), nn.Linear(2, 3, dtype=torch.float64)]
    return Teacher(parts[dist.get_rank()], RULE).verify_ranks()


def test_ranks_that_hold_other_parts_are_compared_in_what_they_share(world4: World):
    assert world4(rank_parts) == [{}] * 4


def rank_seeds() -> tuple[object, ...]:
    student = uneven()
    teacher = Teacher(student, RULE, unit="element", seed=5 + dist.get_rank() // 3)
    found = teacher.verify_ranks(), teacher.repair(), teacher.verify_ranks()
    with torch.no_grad():
        student.body.weight.add_(1)
    teacher.update(student)
    return *found, teacher.seed, teacher.verify_ranks()


def test_a_rank_of_another_seed_is_found_and_draws_on_with_the_others(world4: World):
    deviation = {3: ["(step)"]}
    assert world4(rank_seeds) == [(deviation, deviation, {}, 5, {})] * 4


def rank_units() -> str:
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, dist.get_rank())
    teacher = Teacher(network, RULE, unit="channel" if dist.get_rank() else "element")
    try:
        return str(teacher.repair()[1][0])
    except ValueError as error:
        return str(error)


def test_a_rank_of_another_unit_cannot_be_repaired(worlds: dict[int, World]):
    named, error = worlds[2](rank_units)
    assert named == "(step)" and "the saved teacher has unit='element', this one 'channel'" in error


def rank_batch_norm() -> tuple[object, ...]:
    student = DistributedDataParallel(uneven())
    teacher = Teacher(student, RULE)
    optimizer = sgd(student)
    for step in range(3):
        train_step(student, optimizer, batch(step, dist.get_rank()))
        teacher.update(student)
    return teacher.verify_ranks(), teacher.repair(), teacher.verify_ranks()


def test_running_statistics_that_are_not_synchronised_are_named(worlds: dict[int, World]):
    deviation = {1: ["norm.running_mean", "norm.running_var"]}
    assert worlds[2](rank_batch_norm) == [(deviation, deviation, {})] * 2


def rank_skips() -> tuple[object, ...]:
    student = uneven()
    teacher = Teacher(student, RULE, on_nonfinite="skip")
    if dist.get_rank() == 1:
        student.norm.running_mean[0] = torch.nan  # as in BatchNorm that the ranks do not share
    teacher.update(student)
    return teacher.verify_ranks()[1][0], teacher.repair()[1][0], teacher.verify_ranks(), teacher.step, teacher.skipped


def test_a_rank_that_skipped_alone_is_found_and_counts_on_with_the_others(worlds: dict[int, World]):
    assert worlds[2](rank_skips) == [("(step)", "(step)", {}, 1, 0)] * 2


def rank_dtypes() -> dict[int, list[str]]:
    teacher = Teacher(nn.ParameterList([torch.zeros(3, dtype=dtype) for dtype in DTYPES]), RULE)
    if dist.get_rank() == 1:
        for tensor in teacher.module.parameters():
            local(tensor).fill_(1)
    return teacher.repair() | {-1: [str(tensor.sum().item()) for tensor in teacher.module.parameters()]}


DTYPES = (torch.float64, torch.bfloat16, torch.float16, torch.complex64)


def test_repair_carries_every_dtype(worlds: dict[int, World]):
    names = [str(i) for i in range(len(DTYPES))]
    assert worlds[2](rank_dtypes) == [{1: names, -1: ["0.0", "0.0", "0.0", "0j"]}] * 2
