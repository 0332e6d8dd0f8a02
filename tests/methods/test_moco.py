"""MoCo's loss against NumPy, and its queue: first in, first out."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, SIZE, build, make_batch
from torch import Tensor, nn

from spatial_ensemble import Teacher, networks, temporal_moving_average
from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.moco import MoCo, contrastive_loss
from spatial_ensemble.methods.options.moco import MoCoOptions


def unit(count: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def reference(queries: np.ndarray, keys: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    losses = []
    for q, k in zip(queries, keys, strict=True):
        own = np.exp(q @ k / temperature)
        others = sum(np.exp(q @ other / temperature) for other in queue)
        losses.append(-np.log(own / (own + others)))
    return float(np.mean(losses))


def make(**options: object) -> MoCo:
    method = MoCo(
        networks.build("small", channels=3, size=SIZE),
        CLASSES,
        MoCoOptions(**{"dim": 4, "queue_size": 6, "teacher_norm": "running", **options}),
    )
    return method


def test_contrastive_loss() -> None:
    q, k, queue = unit(5, 8, 0), unit(5, 8, 1), unit(12, 8, 2)
    expected = reference(q.numpy(), k.numpy(), queue.numpy(), 0.2)
    assert contrastive_loss(q, k, queue, 0.2).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", ["moco", "moco symmetric"])
def test_whole_loss_and_the_keys_that_follow_it(case: str) -> None:
    method, teacher = build(case)
    batch = make_batch(method)
    first, second = batch.unlabelled
    twin = copy.deepcopy(method)
    pairs = [(first, second), (second, first)] if case == "moco symmetric" else [(first, second)]
    expected, keys = 0.0, []
    for query_view, key_view in pairs:
        queries = F.normalize(twin.student(query_view), dim=1).detach()
        keys.append(F.normalize(teacher(key_view), dim=1))
        # Both losses are against the queue before this step.
        expected += reference(queries.numpy(), keys[-1].numpy(), twin.queue.numpy(), 0.2)
    loss, _ = method(batch, teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    new = torch.cat(keys)
    torch.testing.assert_close(method.queue, torch.cat([new, twin.queue[len(new) :]]))


def test_queue_is_first_in_first_out_and_wraps_around() -> None:
    method = make(queue_size=6)
    expected = list(method.queue)
    for step in range(7):
        keys = unit(2, 4, step)
        method.enqueue(keys)
        start = step * 2 % 6
        expected[start : start + 2] = list(keys)
        assert torch.equal(method.queue, torch.stack(expected))
        assert method.position.item() == (start + 2) % 6


def test_queue_wraps_around_in_the_middle_of_a_batch() -> None:
    method = make(queue_size=5)
    first, second = unit(3, 4, 0), unit(3, 4, 1)
    method.enqueue(first)
    method.enqueue(second)
    assert torch.equal(method.queue, torch.cat([second[2:], first[1:], second[:2]]))


def test_queue_is_saved_and_starts_with_unit_vectors() -> None:
    method = make()
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(6))
    method.enqueue(unit(2, 4, 0))
    other = make()
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.queue, method.queue) and other.position.item() == 2


class NormalisedMean(nn.Module):
    """Features that tell which images were normalised together."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        groups.append(x)
        return self.norm(self.linear(x.mean(dim=(2, 3))))


groups: list[Tensor] = []


def test_shuffled_groups_are_normalised_apart_and_keys_come_back_in_order() -> None:
    method = MoCo(NormalisedMean(), CLASSES, MoCoOptions(dim=4, queue_size=8, shuffle_groups=2))
    teacher = Teacher(method.student, temporal_moving_average(0.9))
    images = torch.randn(8, 3, 2, 2)
    groups.clear()
    keys = method._keys(teacher, images, step=0, number=0)
    assert [len(group) for group in groups] == [4, 4]
    rows = [next(i for i in range(8) if torch.equal(images[i], image)) for image in torch.cat(groups)]
    assert sorted(rows) == list(range(8)) and rows != list(range(8))
    alone = copy.deepcopy(teacher.module).train()
    expected = torch.empty_like(keys)
    for start in (0, 4):
        expected[rows[start : start + 4]] = alone(images[rows[start : start + 4]]).detach()
    torch.testing.assert_close(keys, expected)
    groups.clear()
    method._keys(teacher, images, step=1, number=0)
    assert not torch.equal(torch.cat(groups), images[rows])  # shuffled anew at every step


@pytest.mark.parametrize(
    ("options", "batch_size", "message"),
    [
        ({"queue_size": 6}, 4, "queue_size 6 is no multiple of the 4 keys of a step: use 8"),
        ({"queue_size": 4}, 8, "queue_size 4 is no multiple of the 8 keys of a step: use 8"),
        ({"queue_size": 12, "symmetric": True}, 4, "queue_size 12 is no multiple of the 8 keys of a step: use 16"),
        ({"queue_size": 8, "teacher_norm": "batch"}, 8, "leaves fewer than 2 images a group: use shuffle_groups 4"),
    ],
)
def test_queue_and_batch_must_fit(options: dict[str, object], batch_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options).check(batch_size=batch_size, processes=1, num_classes=5, labelled=0, size=8)


def test_each_process_shuffles_its_own_images() -> None:
    method = make(queue_size=16, teacher_norm="batch", shuffle_groups=4)
    method.check(batch_size=16, processes=2, num_classes=5, labelled=0, size=8)
    message = "batch size 16 among 4 processes in 4 shuffle_groups leaves fewer than 2 images a group"
    with pytest.raises(UserError, match=message):
        method.check(batch_size=16, processes=4, num_classes=5, labelled=0, size=8)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"shuffle_groups": 0}, {"queue_size": 0}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        make(**options)


def test_statistics_of_groups_move_the_teachers_as_far_as_one_batch_does() -> None:
    moved = {}
    for groups in (1, 2):
        method = make(teacher_norm="batch", shuffle_groups=groups, queue_size=8)
        teacher = Teacher(method.student, temporal_moving_average(0.9))
        norm = next(module for module in teacher.module.modules() if isinstance(module, nn.BatchNorm2d))
        norm.running_mean.fill_(100.0)  # so far away that it hardly matters which images are in a group
        method(make_batch(method), teacher)
        moved[groups] = 100 - norm.running_mean.mean().item()
        assert norm.momentum == nn.BatchNorm2d(1).momentum
    assert moved[2] == pytest.approx(moved[1], rel=0.02)
