"""Options of MoCo v2."""

from dataclasses import dataclass

from spatial_ensemble.methods.options import TeacherNorm, at_least, check_types, require


@dataclass(frozen=True)
class MoCoOptions:
    """Options of MoCo v2.

    Args:
        hidden_dim: hidden size of the projector; 0 is the number of features.
        dim: size of queries and keys.
        queue_size: number of keys in the queue, a multiple of the keys of one step.
        temperature: softmax temperature, above 0.
        symmetric: use each view as the query in turn; a step then adds two keys per image.
        teacher_norm: statistics used by the teacher's BatchNorm: its smoothed ones ("running"), or those of the batch
            ("batch"), the images being shuffled and split into `shuffle_groups`.
        shuffle_groups: groups of keys that are normalised separately with teacher_norm=batch; unused otherwise. Queries
            are normalised together.
    """

    hidden_dim: int = 0
    dim: int = 128
    queue_size: int = 4096
    temperature: float = 0.2
    symmetric: bool = False
    teacher_norm: TeacherNorm = "batch"
    shuffle_groups: int = 8

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 0, "hidden_dim")
        at_least(self, 1, "dim", "queue_size", "shuffle_groups")
        require(self, lambda value: value > 0, "a number above 0", "temperature")
