"""DINO: from every crop of an image, predict the teacher's centred and sharpened outputs for its global crops."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_ensemble.data.batch import Batch
from spatial_ensemble.methods.base import Method, Student, num_features, targets
from spatial_ensemble.methods.options.dino import DINOOptions
from spatial_ensemble.smoothing.schedule import linear
from spatial_ensemble.smoothing.teacher import Teacher


def cross_view_loss(student_logits: Tensor, teacher_probabilities: Tensor) -> Tensor:
    """Cross-entropy over all pairs of a global crop at the teacher and another crop at the student; a scalar.

        mean over images i, and pairs t != s, of  - sum_k teacher[t, i, k] log softmax(student[s, i])[k]

    Args:
        student_logits: [crops, B, K], already divided by the temperature; the global crops come first.
        teacher_probabilities: [global crops, B, K].

    Source: Caron et al. 2021, equation 3.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        log_probabilities = student_logits.float().log_softmax(dim=2)
        losses = -torch.einsum("tbk,sbk->ts", teacher_probabilities.float(), log_probabilities)
    others = 1 - torch.eye(*losses.shape, device=losses.device)
    return (losses * others).sum() / others.sum() / student_logits.shape[1]


class DINOHead(nn.Module):
    """Three linear layers with GELU, unit length, and a last layer whose rows have unit length, without bias.

    Weights are normalised in the forward pass, not by `torch.nn.utils.weight_norm`, which a Teacher cannot copy.

    Args:
        inputs, hidden, bottleneck, outputs: sizes of the layers.
        batchnorm: whether the first two layers have BatchNorm (the original's use_bn_in_head).

    Source: Caron et al. 2021, section 3.1 and appendix C.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, outputs: int, batchnorm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in (inputs, hidden):
            layers += [nn.Linear(size, hidden), *([nn.BatchNorm1d(hidden)] if batchnorm else []), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last = nn.Linear(bottleneck, outputs, bias=False)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, inputs] to logits [B, outputs]."""
        return F.linear(F.normalize(self.layers(x), dim=1), F.normalize(self.last.weight, dim=1))


class DINO(Method):
    """DINO (Caron et al. 2021), with multi-crop, centring and sharpening.

        teacher: softmax((logits - centre) / teacher_temperature)      centre <- c centre + (1 - c) mean(teacher logits)
        loss = cross_view_loss(student logits / student_temperature, teacher)

    The centre is a buffer, so that a resumed run has the same. The backbone must take the local crops' size too.
    """

    Options = DINOOptions
    student: Student
    centre: Tensor

    def __init__(self, backbone: nn.Module, num_classes: int, options: DINOOptions) -> None:
        super().__init__()
        self.unlabelled_views = ("dino_global_1", "dino_global_2", *["dino_local"] * options.local_crops)
        sizes = num_features(backbone), options.hidden_dim, options.bottleneck_dim, options.out_dim
        self.student = Student(backbone, DINOHead(*sizes, options.head_batchnorm))
        self.register_buffer("centre", torch.zeros(options.out_dim))
        warm, steps = options.warmup_teacher_temperature, max(1, options.temperature_warmup_steps)
        self.teacher_temperature = linear(warm, options.teacher_temperature, steps)
        self.options = options

    def forward(self, batch: Batch, teacher: Teacher) -> tuple[Tensor, dict[str, Tensor]]:
        global_crops, local_crops = torch.cat(batch.unlabelled[:2]), batch.unlabelled[2:]
        teacher_logits = targets(teacher, global_crops, self.options.teacher_norm).float()
        features = self.student.backbone(global_crops)
        if local_crops:  # images of another size need another forward pass
            features = torch.cat([features, self.student.backbone(torch.cat(local_crops))])
        logits = self.student.head(features).float()
        temperature = self.teacher_temperature(batch.step)
        probabilities = ((teacher_logits - self.centre) / temperature).softmax(dim=1)
        loss = cross_view_loss(
            logits.unflatten(0, (len(batch.unlabelled), -1)) / self.options.student_temperature,
            probabilities.unflatten(0, (2, -1)),
        )
        self.update_centre(teacher_logits)
        entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(dim=1).mean()
        return loss, {"teacher_entropy": entropy}

    def before_optimizer_step(self, step: int) -> None:
        """Freeze the last layer in the first steps: no optimizer moves or decays a parameter without a gradient."""
        if step < self.options.freeze_last_layer_steps:
            assert isinstance(self.student.head, DINOHead)
            self.student.head.last.weight.grad = None

    @torch.no_grad()
    def update_centre(self, teacher_logits: Tensor) -> None:
        """Move the centre towards the mean of the teacher's logits [B, out_dim], over all processes."""
        mean = teacher_logits.mean(dim=0)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self.centre.lerp_(mean, 1 - self.options.centre_momentum)
