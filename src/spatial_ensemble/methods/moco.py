"""MoCo v2: distinguish the teacher's key of another view of an image from a queue of other images' keys."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.base import Method, Student, num_features, spread, targets
from spatial_ensemble.methods.options.moco import MoCoOptions
from spatial_ensemble.seeding import generator
from spatial_ensemble.smoothing.teacher import Teacher


def contrastive_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE: classify a query's own key among the keys of the queue; a scalar.

        -1/B sum_i log( exp(q_i . k_i / T) / (exp(q_i . k_i / T) + sum_j exp(q_i . queue_j / T)) )

    Args:
        queries: the student's, unit vectors [B, D].
        keys: the teacher's, unit vectors [B, D].
        queue: earlier keys, unit vectors [Q, D].
        temperature: T.

    Source: He et al. 2020, equation 1.
    """
    with torch.autocast(queries.device.type, enabled=False):
        own = (queries * keys).sum(dim=1, keepdim=True)
        logits = torch.cat([own, queries @ queue.T], dim=1) / temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


class MoCo(Method):
    """MoCo v2 (Chen et al. 2020).

        loss = contrastive_loss(student(x1), teacher(x2), queue),    plus the same with x1 and x2 swapped if symmetric

    The queue and its position are buffers: a resumed run has the same keys. The original shuffles images among GPUs so
    that BatchNorm's statistics do not reveal which key belongs to which query. A teacher that uses its running
    statistics reveals nothing (EMAN, arXiv 2101.08482).
    """

    Options = MoCoOptions
    unlabelled_views = ("moco", "moco")
    queue: Tensor
    position: Tensor

    def __init__(self, backbone: nn.Module, num_classes: int, options: MoCoOptions) -> None:
        from lightly.models.modules.heads import MoCoProjectionHead

        super().__init__()
        features = num_features(backbone)
        self.student = Student(backbone, MoCoProjectionHead(features, options.hidden_dim or features, options.dim))
        self.register_buffer("queue", F.normalize(torch.randn(options.queue_size, options.dim), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))  # of the next key
        self.options = options

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = batch.unlabelled
        pairs = [(first, second), (second, first)] if self.options.symmetric else [(first, second)]
        # Cloned, because the new keys are written in place before backward.
        queue = self.queue.clone()
        losses, all_keys = [], []
        for number, (query_view, key_view) in enumerate(pairs):
            queries = F.normalize(self.student(query_view).float(), dim=1)
            keys = F.normalize(self._keys(teacher, key_view, batch.step, number).float(), dim=1)
            losses.append(contrastive_loss(queries, keys, queue, self.options.temperature))
            all_keys.append(keys)
        self.enqueue(torch.cat(all_keys))
        return torch.stack(losses).sum(), {"spread": spread(all_keys[0])}

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by those of all processes, [B, D] from each."""
        if dist.is_available() and dist.is_initialized():
            everyone = keys.new_empty(dist.get_world_size() * len(keys), keys.shape[1])
            dist.all_gather_into_tensor(everyone, keys.contiguous())
            keys = everyone
        places = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, places, keys)
        self.position.add_(len(keys)).remainder_(len(self.queue))

    def _keys(self, teacher: Teacher, images: Tensor, step: int, number: int) -> Tensor:
        if self.options.teacher_norm == "running":
            return targets(teacher, images, "running")
        order = torch.randperm(len(images), generator=generator(0, "moco shuffle", step, number))
        if images.is_cuda:  # from pinned memory the copy is asynchronous
            order = order.pin_memory().to(images.device, non_blocking=True)
        return targets(teacher, images[order], "batch", self.options.shuffle_groups)[order.argsort()]

    def check(self, *, batch_size: int, processes: int, num_classes: int, labelled: int, size: int) -> None:
        super().check(batch_size=batch_size, processes=processes, num_classes=num_classes, labelled=labelled, size=size)
        keys = batch_size * (2 if self.options.symmetric else 1)
        if len(self.queue) % keys:
            near = max(1, round(len(self.queue) / keys)) * keys
            raise UserError(f"queue_size {len(self.queue)} is no multiple of the {keys} keys of a step: use {near}")
        own, groups = batch_size // processes, self.options.shuffle_groups
        if self.options.teacher_norm == "batch" and own < 2 * groups:
            among = f" among {processes} processes" if processes > 1 else ""
            raise UserError(
                f"batch size {batch_size}{among} in {groups} shuffle_groups leaves fewer than 2 images a "
                f"group: use shuffle_groups {max(1, own // 2)} or less"
            )
