"""The training loop. Every draw is a function of the step, so a run resumes at any step as if it had never stopped."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spatial_ensemble.data.images import ImageData
from spatial_ensemble.data.loaders import Batches
from spatial_ensemble.data.sources import load
from spatial_ensemble.data.splits import balanced_indices
from spatial_ensemble.data.views import View, view
from spatial_ensemble.errors import UserError
from spatial_ensemble.evaluation.predict import predict
from spatial_ensemble.methods import Method
from spatial_ensemble.networks import default_network
from spatial_ensemble.seeding import derive_seed, generator
from spatial_ensemble.smoothing.kernels.plain import nonfinite
from spatial_ensemble.training import checkpoint, processes
from spatial_ensemble.training.averages import Averages, Totals
from spatial_ensemble.training.build import (
    build_method,
    build_teacher,
    describe,
    deterministic_cudnn,
    load_backbone,
    load_weights,
    own_random_state,
    seed_torch,
)
from spatial_ensemble.training.config import Config, flag
from spatial_ensemble.training.evaluate import choose_device, measure
from spatial_ensemble.training.logs import Row, progress_bar, tensorboard, write_csv
from spatial_ensemble.training.optim import build_optimizer, learning_rate, set_learning_rate

if TYPE_CHECKING:
    from lightning.fabric import Fabric

CHECKPOINT, CONFIG, LOG = "last.ckpt", "config.yaml", "log.csv"
RESERVED = {"step", "teacher_accuracy", "student_accuracy", "loss"}  # names of a row, which no metric may have
MAY_CHANGE = {"path", "init", "device", "checkpoint_every"}  # between the parts of a run that is resumed


@dataclass(frozen=True)
class Result:
    """What a run came to.

    `history` has one row an evaluation: step, teacher_accuracy, student_accuracy (per cent; kNN accuracy for methods
    without a classifier), and the loss and the method's metrics, averaged over the steps since the row before.
    `seconds` is the time of all its parts, `steps_done` how many steps this call trained.
    """

    history: list[Row]
    teacher_accuracy: float
    student_accuracy: float
    seconds: float
    checkpoint: Path
    steps_done: int


def train(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Result:
    """Train as configured; write config.yaml, log.csv and last.ckpt into `out`.

    Args:
        config: the run.
        out: a folder, made where there is none.
        resume: go on from out/last.ckpt; a finished run is left as it is.
        progress: show a progress bar, if standard error is a terminal.
        on_step: called with the number of steps done, after each step.

    Returns:
        The history and the last accuracies.

    Raises:
        UserError: anything amiss in the configuration, the data or `out`, which is then left as it was; or a loss or
            weight that is not finite, which takes no checkpoint's place.
        OSError: `out` cannot be written to.

    Example:
        >>> from spatial_ensemble.training.recipes import default
        >>> train(default("fixmatch", "digits"), Path("runs/first"))  # doctest: +SKIP
    """
    started = time.monotonic()
    out = Path(out)
    saved = _open(out, resume)
    network = saved["config"]["network"] if saved else None
    resolve = partial(_resolve, config, network)
    # One process alone tells of mistakes before it imports Lightning, which takes seconds.
    fabric = processes.launch(config) if processes.count() > 1 else None
    config, data = resolve() if fabric is None else processes.first_alone(fabric, resolve)
    if saved:
        _check_same(out, saved, config, describe(data))
        if saved["history"] and saved["history"][-1]["step"] == config.run.steps:
            return _result(out, saved["history"], saved["seconds"], 0)
    fabric = fabric or processes.launch(config)
    with own_random_state(fabric.device), deterministic_cudnn():
        return _Run(config, out, data, fabric, saved, started).go(progress, on_step)


def check(config: Config) -> dict[str, Any]:
    """Find whatever `train` would refuse in the configuration or its data, without training.

    Returns:
        What a checkpoint would keep of the data.

    Raises:
        UserError: as `train`.
    """
    config, data = _resolve(config, None)
    choose_device(config.run.device)
    _batches(config, data, _fresh(config, data))
    return describe(data)


def _resolve(config: Config, network: str | None) -> tuple[Config, ImageData]:
    """The data, and the configuration with its network named."""
    images = config.images
    data = load(images.data, images.path, image_size=images.image_size, skip_broken=images.skip_broken)
    return config.replace(network=config.model.network or network or default_network(data.size)), data


class _Run:
    """The parts of a run, built and, where there is a checkpoint, brought to its step."""

    def __init__(
        self, config: Config, out: Path, data: ImageData, fabric: "Fabric", saved: dict[str, Any] | None, started: float
    ) -> None:
        self.config, self.out, self.data, self.fabric, self.started = config, out, data, fabric, started
        self.method = build_method(config, describe(data)) if saved else _fresh(config, data)
        self.batches = _batches(config, data, self.method, fabric.device, fabric.global_rank, fabric.world_size)
        self.synchronised = fabric.world_size > 1 and fabric.device.type == "cuda"  # torch has it for GPUs alone
        if self.synchronised:
            self.method = nn.SyncBatchNorm.convert_sync_batchnorm(self.method)
        self.method.to(fabric.device)
        self.teacher = build_teacher(config, self.method)
        self.start, self.history, self.seconds = 0, list[Row](), 0.0
        if saved:
            load_weights(saved, out / CHECKPOINT, self.method, self.teacher)
        self.optimizer = build_optimizer(self.method, config)
        if saved:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.start, self.history, self.seconds = saved["step"], saved["history"], saved["seconds"]
        self.running = Averages(fabric, saved["running"] if saved else {})  # since the last evaluation
        self.masks = self.nonfinite()  # such as one of attention, with -inf where there is none
        self.module, self.stepper = fabric.setup(self.method, self.optimizer)

    def go(self, progress: bool, on_step: Callable[[int], None] | None) -> Result:
        config, first = self.config, self.fabric.is_global_zero
        self.fabric.barrier()  # every process has looked at `out` before the first one writes there
        if first:
            self.out.mkdir(parents=True, exist_ok=True)
            for name in (CHECKPOINT, CONFIG, LOG):
                checkpoint.clear(self.out / name)
            checkpoint.write_whole(self.out / CONFIG, lambda path: path.write_text(config.to_yaml(), encoding="utf-8"))
        with (
            tensorboard(self.out / "tensorboard", self.start + 1, first) as write_row,
            progress_bar(self.start, config.run.steps, progress and first) as advance,
        ):
            # A run that ends where it had been interrupted has no step to take, but is still to be measured.
            for done in range(min(self.start + 1, config.run.steps), config.run.steps + 1):
                if done > self.start:
                    self.step(done - 1)
                if done % config.run.eval_every == 0 or done == config.run.steps:
                    self.history.append(self.evaluate(done))
                    if first:
                        write_csv(self.out / LOG, self.history)
                        write_row(self.history[-1])
                if done % config.run.checkpoint_every == 0 or done == config.run.steps:
                    self.save(done)
                advance(done, self.history[-1] if self.history else {})
                if on_step is not None:
                    on_step(done)
        return _result(self.out, self.history, self.elapsed(), config.run.steps - self.start)

    def step(self, step: int) -> None:
        """One optimizer step, and with it one step of the teacher."""
        # For dropout and such.
        seed_torch(derive_seed(self.config.run.seed, "step", step, self.fabric.global_rank), self.fabric.device)
        set_learning_rate(self.optimizer, learning_rate(self.config, step))
        self.stepper.zero_grad()
        loss, metrics = self.module(self.batches(step), self.teacher)
        self.fabric.backward(loss)
        self.method.before_optimizer_step(step)
        if self.config.optim.clip_grad is not None:
            # A loss that is not finite is told by `evaluate`, as it is without clipping.
            self.fabric.clip_gradients(
                self.module, self.stepper, max_norm=self.config.optim.clip_grad, error_if_nonfinite=False
            )
        self.stepper.step()
        if self.fabric.world_size > 1 and not self.synchronised:
            # DDP averages gradients alone; without this the statistics, and so the teachers, would drift apart. A
            # teacher that takes its statistics from the batch has some of its own.
            for buffer in (*self.method.student.buffers(), *self.teacher.module.buffers()):
                if buffer.is_floating_point():
                    buffer.copy_(self.mean(buffer))
        self.teacher.update(self.method.student)
        if reserved := sorted(RESERVED & metrics.keys()):
            raise UserError(
                f"{self.config.method} reports a metric by the name of {reserved[0]!r}, which the run reports itself: "
                "give it another name"
            )
        self.running.add({"loss": loss, **metrics})

    def evaluate(self, done: int) -> Row:
        """The next row of the history; the averages begin anew."""
        averages = {name: total.item() / count for name, (total, count) in self.totals(done).items()}
        self.running = Averages(self.fabric, {})
        student, teacher = self.method.student, self.teacher.module
        accuracies = [measure(network, self.data, self.method.headline) for network in (teacher, student)]
        return {"step": done, "teacher_accuracy": accuracies[0], "student_accuracy": accuracies[1], **averages}

    def totals(self, done: int) -> Totals:
        """What all processes reported since the last evaluation. Asked for before anything is written, so that what is
        not finite takes no good checkpoint's place.

        Raises:
            UserError: the loss is not finite, or a weight, which a loss does not show that was computed before.
        """
        before = int(self.history[-1]["step"]) if self.history else 0
        totals, amiss = self.running.totals(), None
        found = torch.tensor(float(len(self.nonfinite() - self.masks)), device=self.fabric.device)
        if self.mean(found) > 0:  # told by all processes, or the others would wait for the one that tells
            amiss = f"the weights are not finite after step {done}"
        if "loss" in totals and not math.isfinite(totals["loss"][0]):
            amiss = f"the loss is not finite between steps {before} and {done}"
        if amiss:
            raise UserError(f"{amiss}: lower --lr, in another --out (what {self.out} holds is from before)")
        return totals

    def nonfinite(self) -> set[str]:
        """The names of tensors, of the method and the teacher, that hold an inf or NaN."""
        states = {f"method.{name}": value for name, value in self.method.state_dict().items()}
        states |= {f"teacher.{name}": value for name, value in self.teacher.state_dict().items()}
        weights = {name: t for name, t in states.items() if isinstance(t, Tensor) and t.is_floating_point()}
        found = set(map(id, nonfinite([*weights.values()])))
        return {name for name, tensor in weights.items() if id(tensor) in found}

    def save(self, done: int) -> None:
        totals = self.totals(done)
        if not self.fabric.is_global_zero:
            return
        content = {
            "config": self.config.to_dict(),
            "step": done,
            "method": self.method.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "running": totals,
            "seconds": self.elapsed(),
            "data": describe(self.data),
        }
        checkpoint.save(self.out / CHECKPOINT, content)

    def mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        result = self.fabric.all_reduce(value, reduce_op="mean")
        assert isinstance(result, Tensor)
        return result

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started


def _open(out: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, if any."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    held = [name for name in (CHECKPOINT, CONFIG, LOG) if (out / name).exists()]
    if not resume:
        if held:
            raise UserError(f"--out {out} already holds a run ({held[0]}): choose another folder, or add --resume")
        return None
    if not held:
        raise UserError(f"--resume: there is no run in {out}; leave out --resume to start one")
    return checkpoint.load(out / CHECKPOINT) if CHECKPOINT in held else None


def _check_same(out: Path, saved: dict[str, Any], config: Config, data: dict[str, Any]) -> None:
    """A run is resumed as it was configured; more steps are fine where no schedule was laid over the whole run."""
    for name, (before, now) in config.differences(saved["config"], MAY_CHANGE).items():
        message = f"the run in {out} has {flag(name)} {before}, not {now}"
        if name != "steps":
            raise UserError(f"{message}: resume it as it was, or choose another --out")
        if config.optim.lr_schedule != "constant" or config.teacher.momentum_schedule == "cosine":
            raise UserError(f"{message}: its schedule was laid over {before} steps; choose another --out")
        if config.run.steps < saved["step"]:
            raise UserError(f"{message}: it has trained {saved['step']} steps already")
    if saved["data"] != data:
        raise UserError(f"the images have changed since the run in {out} began: choose another --out")


def _fresh(config: Config, data: ImageData) -> Method:
    method = build_method(config, describe(data))
    if method.needs_init and config.model.init is None:
        raise UserError(f"{config.method} learns on weights that are there: name their file by --init")
    if config.model.init is not None:
        load_backbone(method, Path(config.model.init))
    return method


def _batches(
    config: Config,
    data: ImageData,
    method: Method,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    if config.images.labels is not None and not method.labelled_views:
        raise UserError(f"{config.method} learns without labels: leave out --labels")
    labelled = balanced_indices(data.train.labels, config.images.labels, data.classes, config.run.seed)
    method.check(
        batch_size=config.run.batch_size,
        processes=world_size,
        num_classes=len(data.classes),
        labelled=len(labelled),
        size=data.size,
    )
    views = {
        name: view(name, size=data.size, flip=data.flip) for name in (*method.labelled_views, *method.unlabelled_views)
    }
    _try_views(config, method, data, views)
    return Batches(
        data.train,
        labelled,
        labelled_views=[views[name] for name in method.labelled_views],
        unlabelled_views=[views[name] for name in method.unlabelled_views],
        batch_size=config.run.batch_size,
        unlabelled_batch_size=config.run.batch_size * method.unlabelled_ratio,
        mean=data.mean,
        std=data.std,
        seed=config.run.seed,
        device=device,
        rank=rank,
        world_size=world_size,
    )


def _try_views(config: Config, method: Method, data: ImageData, views: dict[str, View]) -> None:
    """See, before training, that no view is larger than the images, and that the backbone takes images of its size."""
    image = torch.zeros(1, data.channels, data.size, data.size, dtype=torch.uint8)
    for name, random_view in views.items():
        example = random_view(image, generator(0, "example"))
        size = f"{example.shape[-2]} x {example.shape[-1]}"
        if max(example.shape[-2:]) > data.size:
            raise UserError(
                f"the view {name!r} has {size} pixels, the images have {data.size} x {data.size}: use larger images, "
                "or an option that leaves this view out"
            )
        try:
            predict(method.student.get_submodule("backbone"), example, data.mean, data.std)
        except Exception as error:
            raise UserError(
                f"the network {config.model.network} does not take the {size} pixels of the view {name!r}: {error}"
            ) from error


def _result(out: Path, history: list[Row], seconds: float, steps_done: int) -> Result:
    last = history[-1]
    return Result(history, last["teacher_accuracy"], last["student_accuracy"], seconds, out / CHECKPOINT, steps_done)
