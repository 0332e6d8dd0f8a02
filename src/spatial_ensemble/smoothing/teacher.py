"""The teacher: the one stateful object of the package."""

import operator
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spatial_ensemble.smoothing import diagnostics, ranks
from spatial_ensemble.smoothing.batchnorm import refuse_reset, tracking
from spatial_ensemble.smoothing.copying import check_tensors, copy, copy_trainable, share
from spatial_ensemble.smoothing.kernels.plain import capturing
from spatial_ensemble.smoothing.pairing import Pair, canonical_names, memory, pair_tensors, unwrap
from spatial_ensemble.smoothing.rounding import HALF, Rounding
from spatial_ensemble.smoothing.rule import Smoothing
from spatial_ensemble.smoothing.shards import reshard
from spatial_ensemble.smoothing.state import pack, refuse_others, unpack
from spatial_ensemble.smoothing.swap import Swap, copy_from, copy_to
from spatial_ensemble.smoothing.units import UNITS, Group, MaskLayout, Unit
from spatial_ensemble.smoothing.update import Buffers as Buffers
from spatial_ensemble.smoothing.update import Plan, Settings

OnNonfinite = Literal["raise", "skip"]


class Teacher(nn.Module):
    """A smoothed copy of a student.

        T <- K * T + (1 - K) * (m * T + (1 - m) * S)

    The teacher starts as an exact copy, gets no gradients, and stays in eval mode: a parent module's `train()` does not
    change it; `teacher.module.train()` does. Masks are a function of (seed, step, canonical name, index in the global
    tensor) alone: every rank and shard draws alike, without communication. Calling the teacher changes nothing in eval
    mode; in train mode BatchNorm updates its running statistics.

    `state_dict()` holds tensors alone, the network's and one with step and seed, so that safetensors and
    torch.distributed.checkpoint save it, the latter at any number of ranks. A teacher of another unit, buffers or
    update_every refuses it; the rule, its schedules and the group are functions, and must be passed again.
    Frozen parameters follow the rule like all others: where teacher and student are equal it changes nothing.
    Floating buffers and frozen parameters that hold an inf at the first update, such as attention masks, are copied.

    Args:
        student: the network to copy, possibly wrapped by DistributedDataParallel or torch.compile.
        smoothing: the rule, e.g. `spatial_temporal_smoothing(momentum=0.99, preserve_prob=0.7)`.
        unit: which weights share one draw: all that one module owns ("layer"), one parameter ("tensor", as in the
            paper's released code), one slice along dimension 0 ("channel"), or one weight ("element"; slow for weights
            in channels_last memory, which the compiled kernels do not support with it).
        group: maps a parameter's canonical name to a key; equal keys share their draws.
        buffers: floating buffers are averaged at every step ("average"), copied ("copy"), preserved with their module
            ("follow", needs unit="layer"), or left alone ("keep"). Integer buffers are copied unless kept.
        seed: seed of the draws, from 0 to 2**63 - 1.
        dtype: dtype of the teacher's floating tensors, such as torch.float32 for a bfloat16 student.
        device: device of the teacher.
        update_every: act at every n-th call of `update` only.
        module: a ready copy to smooth into, e.g. one sharded by `fully_shard`, since sharded students cannot be copied;
            it is set to the student's values.
        on_nonfinite: what `update` does if the student holds an inf or NaN: "raise" a ValueError that names the tensor,
            or "skip" the update and count it in `skipped`. Costs one read of the student, a host wait on a GPU, and for
            a sharded student one number reduced over its ranks, so that all decide alike.
        trainable_only: share the parameters that are frozen now with the student instead of copying, averaging and
            saving them, so that a teacher of LoRA costs what the adapters cost. Buffers are copied; dtype applies to
            modules that own a trainable parameter. Not with module or fully_shard.
        rounding: how a bfloat16 or float16 teacher is rounded: "stochastic" (the default) moves it by the right amount
            in expectation, by draws of its own that are the same on every rank, shard and after a resume; "nearest" is
            `torch.lerp`, which at m = 0.9999 hardly moves. Other dtypes, copies and complex32 are rounded to nearest.
            Slow on a CPU without numba, and for weights in channels_last memory.

    Attributes:
        module: the teacher network.
        step: number of calls of `update`, skipped ones not counted.
        skipped: updates skipped for a non-finite student.

    Source: Huang et al. 2021 (arXiv 2110.01253). Unlike in its released code, the first copy is exact, masks are seeded
        by name and step, and the step is part of the state.

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
        trainable_only: bool = False,
        rounding: Rounding | None = None,
    ):
        super().__init__()
        _one_of("unit", unit, UNITS)
        _one_of("buffers", buffers, get_args(Buffers))
        _one_of("on_nonfinite", on_nonfinite, (None, *get_args(OnNonfinite)))
        _one_of("rounding", rounding, (None, *get_args(Rounding)))
        if buffers == "follow" and unit != "layer":
            raise ValueError(
                f"buffers='follow' needs unit='layer', got unit={unit!r}: buffers share their module's draw"
            )
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1, got {update_every}")
        if trainable_only and module is not None:
            raise ValueError("trainable_only=True copies the student itself, and takes no module")
        self.smoothing = smoothing
        self.unit = unit
        self.group = group
        self.buffer_policy = buffers
        self.seed = seed
        self.update_every = update_every
        self.on_nonfinite = on_nonfinite
        self.rounding: Rounding = rounding or "stochastic"
        self.step = 0
        self.skipped = 0
        source, what = (unwrap(student), "student") if module is None else (module, "module")
        check_tensors(source, what, dtype)
        for pair in [] if module is None else pair_tensors(module, student):
            if not pair.is_buffer and memory(pair.teacher) == memory(pair.student):
                raise ValueError(f"module shares its tensor {pair.name!r} with the student: pass a separate copy")
        with torch.inference_mode(False):  # inference tensors cannot be written to outside of inference mode
            if trainable_only:
                self.module, self._shared = copy_trainable(source, device, dtype)
            else:
                self.module = copy(source, device, dtype) if module is None else module.to(device=device, dtype=dtype)
                self._shared = frozenset[str]()
            self.module.requires_grad_(False).eval()
        self.training = False
        self._norms: list[_BatchNorm] = []  # that `update_bn` may have reset
        self._plan: Plan | None = None
        self._swap: Swap | None = None
        if module is not None:
            copy_from(module, student)

    @property
    def seed(self) -> int:
        """Seed of the draws."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        seed = operator.index(seed)  # the repr of NumPy's integers would give another key
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed must be in [0, 2**63 - 1], got {seed}")
        self._seed = seed

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's outputs, without gradients; `module.training` decides between eval and train mode."""
        self._check_no_swap()
        refuse_reset(self._norms)
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Does nothing: a parent's `train()` must not put the teacher's normalisation and dropout into train mode.

        For a teacher in train mode call `teacher.module.train()`. To recompute BatchNorm's statistics call
        `torch.optim.swa_utils.update_bn(loader, teacher.module)`; with the teacher itself its first forward is refused.
        """
        self._norms = tracking(self.module, self._norms)
        return self

    def update(self, student: nn.Module) -> None:
        """Smooth the student into the teacher; call it once after each optimizer step.

        No communication, no device synchronisation (except by `on_nonfinite` and in the first update), and no memory
        that grows with the model.

        Raises:
            ValueError: the student has a missing, extra or mis-shaped tensor, a schedule left [0, 1], the student is
                non-finite under on_nonfinite="raise", or a swap is active. The teacher is then unchanged.
        """
        if torch.compiler.is_compiling():
            torch.compiler.disable(self._update)(student)  # a decorator would import the compiler at once
        else:
            self._update(student)

    @torch.no_grad()
    def _update(self, student: nn.Module) -> None:
        self._check_no_swap()
        plan = self._current_plan(student)
        plan.check_shared()
        momentum, preserve_prob = self.smoothing.at(self.step)
        buffer_momentum = self.smoothing.buffer_momentum_at(self.step)
        if self.on_nonfinite is not None and (name := plan.first_nonfinite()) is not None:
            if self.on_nonfinite == "raise":
                raise ValueError(
                    f"the student's tensor {name!r} is non-finite at step {self.step}; the teacher is unchanged"
                )
            self.skipped += 1
            return
        if self.update_every > 1 and capturing():
            raise RuntimeError(f"update_every={self.update_every} cannot be captured in a CUDA graph: capture with 1")
        if (self.step + 1) % self.update_every == 0:
            plan.run(self.step, momentum, preserve_prob, buffer_momentum)
        self.step += 1

    def swap(self, student: nn.Module) -> Swap:
        """Exchange weights with the student, to evaluate it with the average and without a second copy of the weights.

        Values are exchanged in place, FSDP2 and torch.compile included. The end of the `with` block, or `undo()`, gives
        both their own back bit for bit. Until then do not train the student; the teacher refuses to be used.

        Raises:
            ValueError: the student does not match the teacher, or a swap is active. Nothing is then changed.

        Example:
            >>> teacher = Teacher(student := nn.Linear(4, 2), Smoothing(momentum=0.99))
            >>> with teacher.swap(student):
            ...     outputs = student(torch.zeros(1, 4))  # the teacher's
        """
        self._check_no_swap()
        self._swap = Swap(self.module, student)
        return self._swap

    def copy_to(self, student: nn.Module) -> None:
        """Overwrite the student's parameters and buffers with the teacher's, in the student's dtypes."""
        self._check_no_swap()
        copy_to(self.module, student)

    def mask_layouts(self) -> dict[str, MaskLayout]:
        """Canonical name -> mask layout, for every tensor under the mask."""
        settings = self._settings()
        layouts = {pair.name: settings.layout(pair) for pair in self._pairs(self.module)}
        return {name: layout for name, layout in layouts.items() if layout is not None and layout.key is not None}

    def age(self) -> dict[str, Tensor]:
        """Steps since each unit was last replaced or averaged: int64, [] for a tensor or layer, [units] for finer ones.

        Recomputed from the draws and the present rule; nothing is stored. A unit that never moved has age `step`.
        """
        return diagnostics.ages(self.mask_layouts(), self.smoothing, self.step, self.update_every)

    def fingerprint(self) -> str:
        """A hash of the step and of every tensor, the same for equal teachers on any number of ranks or shards."""
        return ranks.fingerprint(self._tensors(), self.step)

    def verify_ranks(self) -> dict[int, list[str]]:
        """Compare the teachers of all ranks: {rank: [names of tensors unlike the majority's]}, {} if all agree.

        Step, seed and options are compared under the name "(step)".
        """
        return ranks.verify(self._tensors(), self._state())

    def repair(self) -> dict[int, list[str]]:
        """Overwrite what `verify_ranks` finds to differ by the majority's; returns what it found.

        Raises:
            ValueError: this rank's teacher has another unit, buffers or update_every than the majority's.
        """
        found, state = ranks.repair(self._tensors(), self._state())
        if state is not None:
            self.set_extra_state(state)
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "") + "module."
        for name in self._shared_state():
            del state[prefix + name]
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Shared tensors are not saved; loading them onto themselves lets a strict load find every name.
        super()._load_from_state_dict(state_dict, prefix, *args)
        state_dict.update((f"{prefix}module.{name}", tensor) for name, tensor in self._shared_state().items())

    def _shared_state(self) -> dict[str, Tensor]:
        """Name in `module.state_dict()` -> tensor shared with the student."""
        if not self._shared:
            return {}
        state = self.module.state_dict(keep_vars=True)
        return {name: state[name] for name, canonical in canonical_names(state).items() if canonical in self._shared}

    def get_extra_state(self) -> Tensor:
        return pack(self._state())

    def set_extra_state(self, state: Tensor | Mapping[str, Any]) -> None:
        state = unpack(state)
        refuse_others(state, self._state())
        self.step, self.skipped, self.seed = state["step"], state["skipped"], state["seed"]
        self._plan = None  # which depends on loaded values

    def _state(self) -> dict[str, Any]:
        self._check_no_swap()  # or a state dict would hold the student
        half = any(tensor.dtype in HALF for tensor in (*self.module.parameters(), *self.module.buffers()))
        return {
            "step": self.step,
            "skipped": self.skipped,
            "seed": self.seed,
            "update_every": self.update_every,
            "unit": self.unit,
            "buffers": self.buffer_policy,
            "trainable_only": bool(self._shared),
            "rounding": self.rounding if half else None,  # None: it has no effect
        }

    def extra_repr(self) -> str:
        return (
            f"{self.smoothing}, unit={self.unit!r}, buffers={self.buffer_policy!r}, seed={self.seed}, step={self.step}"
        )

    def __getstate__(self) -> dict[str, Any]:
        self._check_no_swap()
        own = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**own, "_plan": None, "_swap": None}  # a copy or pickle must not hold the student

    def _check_no_swap(self) -> None:
        if self._swap is not None and self._swap.active:
            raise ValueError("teacher and student are swapped: call the student, or end the swap to use the teacher")

    def _settings(self) -> Settings:
        own = self.smoothing.buffer_momentum is not None
        return Settings(self.seed, self.unit, self.group, self.buffer_policy, own, self.rounding, self._shared)

    def _current_plan(self, student: nn.Module) -> Plan:
        """The cached plan, rebuilt if stale."""
        plan, settings = self._plan, self._settings()
        if plan is not None and plan.is_current(student, settings):
            return plan
        reshard(self, student)  # FSDP2 may hold gathered weights in the place of the shards
        if self._shared:
            share(self.module, student, self._shared)
        if plan is None or not plan.is_current(student, settings):
            plan = self._plan = Plan(self.module, student, settings)
        return plan

    def _tensors(self) -> dict[str, Tensor]:
        """Canonical name -> tensor, sorted by name."""
        self._check_no_swap()
        return {pair.name: pair.teacher for pair in self._pairs(self.module)}

    def _pairs(self, student: nn.Module) -> list[Pair]:
        """All pairs but the shared ones."""
        return [pair for pair in pair_tensors(self.module, student) if pair.name not in self._shared]


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
