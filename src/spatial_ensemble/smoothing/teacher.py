"""The teacher: the one stateful object of the package."""

import itertools
import operator
from copy import deepcopy
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from spatial_ensemble.smoothing import diagnostics, ranks
from spatial_ensemble.smoothing.draw import Place
from spatial_ensemble.smoothing.kernels.plain import capturing
from spatial_ensemble.smoothing.pairing import Pair, Pairing, memory, unwrap
from spatial_ensemble.smoothing.plan import Plan
from spatial_ensemble.smoothing.rule import Smoothing
from spatial_ensemble.smoothing.shards import is_fsdp, local, reshard
from spatial_ensemble.smoothing.units import UNITS, Group, Unit, everywhere, place

Buffers = Literal["average", "copy", "follow", "keep"]
OnNonfinite = Literal["raise", "skip"]


class Teacher(nn.Module):
    """A smoothed copy of a student.

        T <- K * T + (1 - K) * (m * T + (1 - m) * S)

    The teacher is an exact copy at first, gets no gradients, and stays in eval mode whatever a parent module's
    `train()` says; `teacher.module.train()` puts it into train mode. Masks are a function of (seed, step, canonical
    name, index in the global tensor) alone: every rank and shard draws alike, and no communication is needed.
    `state_dict()` holds what the network itself saves, step and seed, sharded or not, and is refused by a teacher of
    another unit, buffers or update_every; the rule, its schedules and the group are functions, and have to be given
    anew. torch.distributed.checkpoint saves and loads {"teacher": teacher} at any number of ranks.

    Args:
        student: the network to copy, perhaps wrapped by DistributedDataParallel or torch.compile.
        smoothing: the rule, e.g. `spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7)`.
        unit: which weights share one draw: all that one module owns ("layer"), one parameter ("tensor", as in the
            paper's released code), one slice along dimension 0 ("channel"), or one weight ("element"; slow for weights
            in channels_last memory, which the compiled kernels do not take with it).
        group: maps a parameter's canonical name to a key; equal keys share their draws.
        buffers: floating buffers are averaged at every step ("average"), copied ("copy"), move under their
            module's draw ("follow", with unit="layer"), or stay ("keep"). Integer buffers are copied unless kept.
        seed: of the draws.
        dtype: of the teacher's floating tensors, such as torch.float32 beside a bfloat16 student.
        device: of the teacher.
        update_every: act at every n-th call of `update` only.
        module: a ready copy to smooth into, e.g. one that `fully_shard` cut like the student, which then cannot be
            copied; it takes on the student's values.
        on_nonfinite: what `update` does when the student holds an inf or NaN: raise a ValueError that names the tensor,
            or skip the update and count it in `skipped`. Costs one read of the student, a host wait on a GPU, and for
            a sharded student one number reduced over its ranks, so that all decide alike.

    Attributes:
        module: the teacher network.
        step: how often `update` has been called (skipped updates not counted).
        skipped: updates skipped for a non-finite student.

    Source: Huang et al. 2021 (arXiv 2110.01253). Unlike its released code the first copy is exact, masks are seeded by
        name and step, and the step is part of the state.

    Example:
        >>> student = nn.Linear(4, 2)
        >>> teacher = Teacher(student, Smoothing(momentum=0.99, preserve_prob=0.7))
        >>> teacher.update(student)  # once per optimizer step
        >>> teacher(torch.zeros(1, 4)).requires_grad
        False
    """

    def __init__(
        self,
        student: nn.Module,
        smoothing: Smoothing,
        *,
        unit: Unit = "tensor",
        group: Group | None = None,
        buffers: Buffers = "average",
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        update_every: int = 1,
        module: nn.Module | None = None,
        on_nonfinite: OnNonfinite | None = None,
    ):
        super().__init__()
        _one_of("unit", unit, UNITS)
        _one_of("buffers", buffers, get_args(Buffers))
        _one_of("on_nonfinite", on_nonfinite, (None, *get_args(OnNonfinite)))
        if buffers == "follow" and unit != "layer":
            raise ValueError(
                f"buffers='follow' needs unit='layer', got unit={unit!r}: a buffer shares its module's draw"
            )
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1, got {update_every}")
        self.smoothing = smoothing
        self.unit = unit
        self.group = group
        self.buffer_policy = buffers
        self.seed = seed
        self.update_every = update_every
        self.on_nonfinite = on_nonfinite
        self.step = 0
        self.skipped = 0
        source, what = (unwrap(student), "student") if module is None else (module, "module")
        _check_tensors(source, what, dtype)
        pairs = [] if module is None else Pairing(module, student).pairs
        for pair in pairs:
            if not pair.is_buffer and memory(pair.teacher) == memory(pair.student):
                raise ValueError(f"module shares its tensor {pair.name!r} with the student: give a network of its own")
        with torch.inference_mode(False):  # what is made in inference mode cannot be written to outside of it
            self.module = (_copy(source) if module is None else module).to(device=device, dtype=dtype)
            self.module.requires_grad_(False).eval()
        self._plan: Plan | None = None
        if module is not None:
            with torch.no_grad():
                for pair in Pairing(module, student).pairs:
                    local(pair.teacher).copy_(local(pair.student))

    @property
    def seed(self) -> int:
        """The seed of the draws."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = operator.index(seed)  # NumPy's integers would draw under another name

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's answer: no gradients, eval mode."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Does nothing: a parent's `train()` must not switch the teacher's normalisation and dropout on.

        To run the teacher in train mode, call `teacher.module.train()`.
        """
        return self

    def update(self, student: nn.Module) -> None:
        """Smooth the student into the teacher; call it once after each optimizer step.

        No communication, no device synchronisation (`on_nonfinite` needs them, and frozen parameters once), no memory
        that grows with the model.

        A parameter that has and needs no gradient is copied at the first update. After that, while it is equal to the
        teacher's and is not written to, it is left alone: the rule would change nothing. One that is trained all the
        same, and frozen only while `update` is called, follows the rule as any other, with one exception: what a fused
        optimizer writes is not seen where its gradients are set to None before `update`.

        Raises:
            ValueError: the student has a missing, extra or mis-shaped tensor, a schedule left [0, 1], or the student is
                not finite under on_nonfinite="raise". The teacher is then unchanged.
        """
        if torch.compiler.is_compiling():
            torch.compiler.disable(self._update)(student)  # as a decorator it would import the compiler at once
        else:
            self._update(student)

    @torch.no_grad()
    def _update(self, student: nn.Module) -> None:
        plan = self._prepare(student)
        momentum, preserve_prob = self.smoothing.at(self.step)
        buffer_momentum = self.smoothing.buffer_momentum_at(self.step)
        if self.on_nonfinite is not None and (name := plan.first_nonfinite()) is not None:
            if self.on_nonfinite == "raise":
                raise ValueError(
                    f"the student's tensor {name!r} is not finite at step {self.step}; the teacher is unchanged"
                )
            self.skipped += 1
            return
        if self.update_every > 1 and capturing():
            raise RuntimeError(f"update_every={self.update_every} cannot be captured in a CUDA graph: capture with 1")
        if (self.step + 1) % self.update_every == 0:
            plan.run(self.step, momentum, preserve_prob, buffer_momentum)
        self.step += 1

    def places(self) -> dict[str, Place]:
        """Canonical name -> place of its draws, for every tensor under the mask."""
        placed = ((pair.name, self._place(pair)) for pair in Pairing(self.module, self.module).pairs)
        return {name: where for name, where in placed if where is not None and where.key is not None}

    def age(self) -> dict[str, Tensor]:
        """Steps since each unit was last replaced or averaged: int64, [] for a tensor or layer, [units] for finer ones.

        Nothing is stored for it: the ages are found again from the draws, those of frozen parameters too, and from the
        present rule at the steps gone by. A unit that never moved has age `step`.
        """
        return diagnostics.ages(self)

    def fingerprint(self) -> str:
        """A hash of the step and of every tensor, the same for equal teachers on any number of ranks or shards."""
        return ranks.fingerprint(self)

    def verify_ranks(self) -> dict[int, list[str]]:
        """Compare the teachers of all ranks: {rank: [names of tensors unlike the majority's]}, {} if all agree.

        Step, seed and options are compared under the name "(step)".
        """
        return ranks.verify(self)

    def repair(self) -> dict[int, list[str]]:
        """Overwrite tensors that `verify_ranks` finds to differ by the majority's; returns what was mended."""
        return ranks.repair(self)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "skipped": self.skipped,
            "seed": self.seed,
            "unit": self.unit,
            "buffers": self.buffer_policy,
            "update_every": self.update_every,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        own = self.get_extra_state()
        for name in ("unit", "buffers", "update_every"):
            if state[name] != own[name]:
                raise ValueError(
                    f"the saved teacher has {name}={state[name]!r}, this one {own[name]!r}: its masks would not go on; "
                    f"build the Teacher with {name}={state[name]!r}"
                )
        self.step, self.skipped, self.seed = state["step"], state["skipped"], state["seed"]
        self._plan = None  # which was made for other values

    def extra_repr(self) -> str:
        return (
            f"{self.smoothing}, unit={self.unit!r}, buffers={self.buffer_policy!r}, seed={self.seed}, step={self.step}"
        )

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_plan": None}  # a copy or pickle must not hold on to the student

    def _prepare(self, student: nn.Module) -> Plan:
        rule, apart = (self.seed, self.unit, self.group, self.buffer_policy), self.smoothing.buffer_momentum is not None
        plan = self._plan
        if plan is None or not plan.holds(student, rule, apart):
            reshard(self, student)
            if plan is None or not plan.holds(student, rule, apart):
                pairing = Pairing(self.module, student, buffers=self.buffer_policy != "keep")
                plan = Plan(
                    student, pairing, self._place, rule, first=self.step < self.update_every, buffers_apart=apart
                )
                self._plan = plan
        return plan

    def _place(self, pair: Pair) -> Place | None:
        """Where a pair's draws lie, or None for a buffer that is copied or kept."""
        t = pair.teacher
        if not (t.is_floating_point() or t.is_complex()):
            return None
        if not pair.is_buffer or self.buffer_policy == "follow":
            return place(t, pair.name, self.unit, self.seed, self.group)
        return everywhere(local(t)) if self.buffer_policy == "average" else None


def _check_tensors(module: nn.Module, what: str, dtype: torch.dtype | None) -> None:
    """Refuse tensors that have no values, or would lose a part of them in the teacher's dtype."""
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError(f"the {what}'s tensor {name!r} is lazy and uninitialised: run one batch through it first")
        if tensor.is_meta:
            raise ValueError(
                f"the {what}'s tensor {name!r} is on the meta device and has no values: call to_empty and initialise "
                "it before the Teacher is built"
            )
        if dtype is not None and tensor.is_complex() and not dtype.is_complex:
            raise ValueError(f"dtype={dtype} would drop the imaginary part of {name!r} ({tensor.dtype}): leave it out")


def _copy(student: nn.Module) -> nn.Module:
    reshard(student)  # or refuse what fully_shard did not shard
    if is_fsdp(student):
        raise ValueError(
            "the student is sharded by fully_shard, and such a module cannot be copied. Either build the teacher first "
            "and shard it alike: teacher = Teacher(student, ...); fully_shard(student); fully_shard(teacher.module). "
            "Or give it a copy that is sharded alike: Teacher(student, ..., module=ready_sharded_copy)"
        )
    return deepcopy(student)


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
