"""Tensor parallelism: weights cut along dimension 0 or 1, or held by all, alone and under FSDP2."""

import pytest
import torch
import torch.distributed as dist
from networks import RULE, UNITS, batch, differences, gathered, local, replay
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from world import World

from spatial_ensemble import Teacher


class TwoLayers(nn.Module):
    def __init__(self, seed: int = 0, hidden: int = 12):
        super().__init__()
        torch.manual_seed(seed)
        self.up = nn.Linear(6, hidden)
        self.down = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:  # [B, 6] -> [B, 3]
        return self.down(self.up(x).relu()).tanh()


def parallel(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(module, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def alone(mesh: DeviceMesh, dim: str) -> DeviceMesh:
    """One dimension of a mesh; without a parent, since torch 2.6 cuts tensors along the last dimension of one only."""
    return DeviceMesh.from_group(mesh.get_group(dim), "cpu")


def train(student: nn.Module, plain: nn.Module, teacher: Teacher, whole: Teacher) -> list[str]:
    """Train the sharded student; the plain one takes its gathered values. Returns where the teachers differ."""
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for step in range(4):
        optimizer.zero_grad()
        student(batch(step)).square().mean().backward()
        optimizer.step()
        teacher.update(student)
        plain.load_state_dict(gathered(student))
        whole.update(plain)
    return differences(gathered(teacher.module), whole.module.state_dict())


def rank_train(unit: str) -> list[object]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    answers: list[object] = []
    for build in ("copy", "teacher first", "ready module"):
        student, plain = TwoLayers(), TwoLayers()
        if build == "teacher first":
            teacher = Teacher(student, RULE, unit=unit)
            parallel(teacher.module, mesh), parallel(student, mesh)
        else:
            parallel(student, mesh)
            module = None if build == "copy" else parallel(TwoLayers(seed=1), mesh)
            teacher = Teacher(student, RULE, unit=unit, module=module)
        whole = Teacher(plain, RULE, unit=unit)
        answers.append(train(student, plain, teacher, whole))
        answers.append(torch.allclose(teacher(batch(9)), whole(batch(9)), atol=1e-6))
        answers.append(teacher.fingerprint() == whole.fingerprint())
        answers.append(teacher.verify_ranks())
    placements = {name: tuple(p.placements) for name, p in teacher.module.named_parameters()}
    assert placements["up.weight"] == placements["up.bias"] == (Shard(0),)
    assert placements["down.weight"] == (Shard(1),) and placements["down.bias"] == (Replicate(),)
    return answers


@pytest.mark.parametrize("unit", UNITS)
def test_gathered_teacher_equals_that_of_one_process(world: World, unit: str):
    assert world(rank_train, unit) == [[[], True, True, {}] * 3] * world.size


def rank_uneven(unit: str) -> tuple[object, ...]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    student, plain = TwoLayers(hidden=5), TwoLayers(hidden=5)
    teacher, whole = Teacher(parallel(student, mesh), RULE, unit=unit), Teacher(plain, RULE, unit=unit)
    states = [TwoLayers(seed, hidden=5).state_dict() for seed in range(1, 5)]  # torch cannot train uneven shards
    replay(teacher, student, states), replay(whole, plain, states)
    return differences(gathered(teacher.module), whole.module.state_dict()), local(teacher.module.down.weight).shape[1]


@pytest.mark.parametrize("unit", UNITS)
def test_uneven_shards_equal_one_process(world: World, unit: str):
    columns = {2: [3, 2], 4: [2, 2, 1, 0]}[world.size]
    assert world(rank_uneven, unit) == [([], count) for count in columns]


def rank_replicated() -> tuple[object, ...]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    teacher = Teacher(parallel(TwoLayers(), mesh), RULE)
    if dist.get_rank() == 1:
        local(teacher.module.down.bias).add_(1)  # held by all
        local(teacher.module.down.weight).add_(1)  # this rank's alone: nothing to compare it with
    return teacher.verify_ranks(), teacher.repair(), teacher.verify_ranks()


def test_what_all_hold_is_compared_and_mended(world: World):
    deviation = {1: ["down.bias"]}
    assert world(rank_replicated) == [(deviation, deviation, {})] * world.size


def rank_two_meshes(unit: str) -> tuple[object, ...]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    hidden = 10 if torch.__version__ >= "2.8" else 12  # 5 rows, of which one rank has 3 and one 2; before 2.8 even cuts
    student, plain = TwoLayers(hidden=hidden), TwoLayers(hidden=hidden)
    teacher, whole = Teacher(student, RULE, unit=unit, on_nonfinite="skip"), Teacher(plain, RULE, unit=unit)
    for module in (student, teacher.module):
        fully_shard(parallel(module, mesh["tensor"]), mesh=mesh["data"])
    found = train(student, plain, teacher, whole)
    same = teacher.fingerprint() == whole.fingerprint()
    cuts = [
        len(
            {dim for dim, (size, all_of_it) in enumerate(zip(local(p).shape, p.shape, strict=True)) if size < all_of_it}
        )
        for p in (teacher.module.up.weight, teacher.module.down.weight)
    ]
    if dist.get_rank() == 2:
        local(student.down.weight).data.fill_(torch.nan)
    teacher.update(student)
    return found, same, cuts, teacher.skipped, teacher.verify_ranks()


@pytest.mark.parametrize("unit", UNITS)
def test_fsdp_over_tensor_parallelism_equals_one_process(world4: World, unit: str):
    # up.weight is cut twice along dimension 0, down.weight along dimensions 0 and 1
    assert world4(rank_two_meshes, unit) == [([], True, [1, 2], 1, {})] * 4


def rank_other_mesh() -> str:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    student, module = (parallel(TwoLayers(), alone(mesh, dim)) for dim in ("data", "tensor"))
    with pytest.raises(ValueError) as caught:
        Teacher(student, RULE, module=module)
    return str(caught.value)


def test_a_module_whose_shards_lie_on_other_ranks_is_refused(world4: World):
    # Both are cut in two along the same dimensions, but rank 1 has the first half of one and the second of the other.
    for message in world4(rank_other_mesh):
        assert "they must have the same shape and sharding" in message


def rank_disjoint_meshes(culprit: int) -> tuple[object, ...]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    student = TwoLayers()
    parallelize_module(student, alone(mesh, "data"), {"up": ColwiseParallel()})
    parallelize_module(student, mesh["tensor"], {"down": RowwiseParallel()})
    teacher = Teacher(student, RULE, on_nonfinite="skip")
    if dist.get_rank() == culprit:
        local(student.up.weight).data.fill_(torch.nan)
    teacher.update(student)
    return teacher.step, teacher.skipped


@pytest.mark.parametrize("culprit", [0, 3])
def test_all_ranks_skip_together_where_tensors_are_cut_over_different_meshes(world4: World, culprit: int):
    assert world4(rank_disjoint_meshes, culprit) == [(0, 1)] * 4


def rank_too_many_cuts() -> str:
    mesh = init_device_mesh("cpu", (2, 2))
    cut = distribute_tensor(torch.zeros(3, 4, 4), mesh, [Shard(1), Shard(2)])
    student = nn.ParameterList([nn.Parameter(cut)])
    with pytest.raises(ValueError) as caught:
        Teacher(student, RULE, unit="element").update(student)
    return str(caught.value)


def test_a_shard_that_is_no_run_of_rows_is_refused(world4: World):
    for message in world4(rank_too_many_cuts):
        assert "cannot draw for '0'" in message
        assert "shard (3, 4, 4) along dimensions [1, 2]" in message
        assert "shard along one dimension, or along dimension 0 and one other" in message
