"""What methods keep from step to step is that of all ranks together."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from world import World

from spatial_ensemble import Teacher, networks, temporal_moving_average
from spatial_ensemble.data.batch import Batch
from spatial_ensemble.methods import Method, get

OPTIONS = {
    "fixmatch": {"threshold": 0.2, "unlabelled_ratio": 1},
    "moco": {"queue_size": 16, "dim": 8, "hidden_dim": 8, "teacher_norm": "running"},
    "dino": {
        "out_dim": 8,
        "hidden_dim": 8,
        "bottleneck_dim": 4,
        "local_crops": 0,
        "freeze_last_layer_steps": 1,
        "teacher_norm": "running",
    },
}


def build(name: str) -> tuple[Method, Teacher]:
    torch.manual_seed(0)
    kind = get(name)
    method = kind(networks.build("small", channels=1, size=8), 4, kind.Options(**OPTIONS[name]))
    # In eval mode, so that the images of one rank do not bear on the outputs of another.
    return method.eval(), Teacher(method.student, temporal_moving_average(0.9))


def make_batch(step: int, part: slice) -> Batch:
    torch.manual_seed(step)
    images, other = torch.randn(8, 1, 8, 8), torch.randn(8, 1, 8, 8)
    return Batch(step, (images[part],), torch.randint(4, (8,))[part], (images[part], other[part]))


def train(method: Method, forward: nn.Module, teacher: Teacher, part: slice) -> dict[str, Tensor]:
    """The state of the method after three steps, and its gradients in each."""
    seen = {}
    for step in range(3):
        method.zero_grad()
        forward(make_batch(step, part), teacher)[0].backward()
        seen |= {f"{step} {name}": p.grad.clone() for name, p in method.named_parameters()}
        with torch.no_grad():
            for parameter in method.parameters():
                parameter -= 0.1 * parameter.grad
        teacher.update(method.student)
    return seen | method.state_dict()


def rank_train(name: str) -> dict[str, Tensor]:
    each = 8 // dist.get_world_size()
    method, teacher = build(name)
    part = slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)
    return train(method, DistributedDataParallel(method), teacher, part)


@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_train_as_one_process_does_on_the_whole_batch(worlds: dict[int, World], name: str) -> None:
    method, teacher = build(name)
    alone = train(method, method, teacher, slice(None))
    for state in worlds[2](rank_train, name):
        for key, value in alone.items():
            torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
