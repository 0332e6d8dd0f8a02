"""Options of DINO."""

from dataclasses import dataclass

from spatial_ensemble.methods.options import TeacherNorm, at_least, check_types, require


@dataclass(frozen=True)
class DINOOptions:
    """Options of DINO.

    Args:
        out_dim: outputs of the head (65536 on ImageNet).
        hidden_dim: hidden size of the head.
        bottleneck_dim: size of the input of the head's last layer.
        head_batchnorm: use BatchNorm in the head; the paper does not with vision transformers, which have none.
        local_crops: small crops per image in addition to the two global ones; 0 is off.
        student_temperature: softmax temperature of the student, above 0.
        teacher_temperature: softmax temperature of the teacher after its warm-up, above 0.
        warmup_teacher_temperature: softmax temperature of the teacher at step 0, above 0.
        temperature_warmup_steps: steps over which the teacher's temperature changes linearly; 0 is off.
        centre_momentum: momentum c of the centre, in [0, 1].
        freeze_last_layer_steps: steps during which the head's last layer is frozen (the original: one epoch).
        teacher_norm: statistics used by the teacher's BatchNorm, if it has any: those of the batch ("batch", as the
            original), or its smoothed ones ("running"), which mostly come from the student's local crops.
    """

    out_dim: int = 4096
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    head_batchnorm: bool = False
    local_crops: int = 6
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    warmup_teacher_temperature: float = 0.04
    temperature_warmup_steps: int = 0
    centre_momentum: float = 0.9
    freeze_last_layer_steps: int = 0
    teacher_norm: TeacherNorm = "batch"

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "out_dim", "hidden_dim", "bottleneck_dim")
        at_least(self, 0, "local_crops", "temperature_warmup_steps", "freeze_last_layer_steps")
        temperatures = "student_temperature", "teacher_temperature", "warmup_teacher_temperature"
        require(self, lambda value: value > 0, "a number above 0", *temperatures)
        require(self, lambda value: 0 <= value <= 1, "a number from 0 to 1", "centre_momentum")
