"""The training loop. Every draw is a function of the step, so a resumed run equals an uninterrupted one to the bit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.options import flag
from spatial_ensemble.seeding import derive_seed
from spatial_ensemble.smoothing.kernels.plain import nonfinite
from spatial_ensemble.training import checkpoint, processes
from spatial_ensemble.training.averages import Averages
from spatial_ensemble.training.build import describe, explained, load_weights
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.determinism import deterministic_cudnn, seed_torch
from spatial_ensemble.training.evaluate import measure
from spatial_ensemble.training.logs import Row, progress_bar, tensorboard, write_csv
from spatial_ensemble.training.optim import build_optimizer, learning_rate, load_state
from spatial_ensemble.training.prepare import Prepared, load_data, prepare

if TYPE_CHECKING:
    from lightning.fabric import Fabric

CHECKPOINT, CONFIG, LOG = "last.ckpt", "config.yaml", "log.csv"
RESERVED = {"step", "teacher_accuracy", "student_accuracy", "loss"}  # columns of log.csv that no metric may have
MAY_CHANGE = {"path", "init", "device", "checkpoint_every"}  # when a run is resumed


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        history: one row an evaluation: step, teacher_accuracy and student_accuracy (per cent; kNN accuracy for methods
            without a classifier), the loss and the method's metrics, averaged over the steps since the row before.
        seconds: of training and evaluation, over all parts of a resumed run.
        steps_done: by this call.
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
        out: a folder, created if missing.
        resume: continue from out/last.ckpt; a finished run is left unchanged.
        progress: show a progress bar if standard error is a terminal.
        on_step: called with the number of steps done, after each step.

    Raises:
        UserError: a mistake in the configuration, the data or `out`, which is left unchanged; or a loss or weights that
            are non-finite, which are not saved.
        OSError: `out` is not writable.

    Example:
        >>> from spatial_ensemble.training.recipes import default
        >>> train(default("fixmatch", "digits"), Path("runs/first"))  # doctest: +SKIP
    """
    started = time.monotonic()
    out = Path(out)
    saved = _open(out, resume)
    if saved and config.model.network is None:
        config = config.replace(network=saved["config"].get("network"))
    if processes.count() == 1:  # mistakes are reported before Lightning is imported, which takes seconds
        where: dict[str, Any] = {"device": processes.choose_device(config.run.device)}
        config, data = load_data(config, resumed=saved is not None)
    else:
        fabric = processes.launch(config.run)
        where = {"device": fabric.device, "rank": fabric.global_rank, "world_size": fabric.world_size}
        config, data = processes.first_alone(fabric, partial(load_data, config, resumed=saved is not None))
    if saved:
        _check_same(out, saved, config, describe(data))
        if saved["history"] and saved["history"][-1]["step"] == config.run.steps:
            return _result(saved["history"], saved["seconds"], out, steps_done=0)
    prepared = prepare(config, data, resumed=saved is not None, **where)
    fabric = processes.launch(config.run) if processes.count() == 1 else fabric
    cuda = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), deterministic_cudnn():  # the caller's generators are left as they were
        return _fit(prepared, fabric, out, saved, started, progress, on_step)


def _fit(
    prepared: Prepared,
    fabric: "Fabric",
    out: Path,
    saved: dict[str, Any] | None,
    started: float,
    progress: bool,
    on_step: Callable[[int], None] | None,
) -> Result:
    """The loop of `train`."""
    config, data, method, teacher = prepared.config, prepared.data, prepared.method, prepared.teacher
    steps, first = config.run.steps, fabric.is_global_zero
    optimizer = build_optimizer(method, config)
    start, history, seconds = 0, list[Row](), 0.0
    if saved:
        load_weights(saved, out / CHECKPOINT, method, teacher)
        with explained(f"checkpoint {out / CHECKPOINT} holds the state of another optimizer"):
            load_state(optimizer, saved["optimizer"])
        start, history, seconds = saved["step"], saved["history"], saved["seconds"]
    averages = Averages(fabric, saved["running"] if saved else {})  # since the last evaluation
    nonfinite_at_start = _nonfinite(prepared)  # such as an attention mask of -inf
    module, stepper = fabric.setup(method, optimizer)

    fabric.barrier()  # every process has read `out` before the first one writes there
    if first:
        out.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, CONFIG, LOG):
            checkpoint.clear(out / name)
        checkpoint.write_whole(out / CONFIG, lambda path: path.write_text(config.to_yaml(), encoding="utf-8"))
    with (
        tensorboard(out / "tensorboard", start + 1, first) as write_row,
        progress_bar(start, steps, progress and first) as advance,
    ):
        # A run that ends where it was interrupted has no step left, but is still evaluated.
        for done in range(min(start + 1, steps), steps + 1):
            if done > start:
                averages.add(take_step(done - 1, prepared, fabric, module, stepper))
            evaluated = done % config.run.eval_every == 0 or done == steps
            if evaluated or done % config.run.checkpoint_every == 0:
                totals = averages.totals()
                before = int(history[-1]["step"]) if history else 0
                loss, _ = totals.get("loss", (torch.zeros(()), 0))
                found = torch.tensor(float(len(_nonfinite(prepared) - nonfinite_at_start)), device=fabric.device)
                problem = f"the weights are non-finite after step {done}" if _mean(fabric, found) > 0 else None
                if not math.isfinite(loss):
                    problem = f"the loss is non-finite between steps {before} and {done}"
                if problem:  # in every process, and before anything is written
                    raise UserError(f"{problem}: lower --lr, in another --out ({out} keeps its last checkpoint)")
            if evaluated:
                accuracies = [measure(network, data, method.headline) for network in (teacher.module, method.student)]
                row = {"step": done, "teacher_accuracy": accuracies[0], "student_accuracy": accuracies[1]}
                history.append(row | {name: total.item() / count for name, (total, count) in totals.items()})
                averages, totals = Averages(fabric, {}), {}
                if first:
                    write_csv(out / LOG, history)
                    write_row(history[-1])
            if first and (done % config.run.checkpoint_every == 0 or done == steps):
                content = {
                    "config": config.to_dict(),
                    "step": done,
                    "method": method.state_dict(),
                    "teacher": teacher.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                    "running": totals,
                    "seconds": seconds + time.monotonic() - started,
                    "data": describe(data),
                }
                checkpoint.save(out / CHECKPOINT, content)
            advance(done, history[-1] if history else {})
            if on_step is not None:
                on_step(done)
    return _result(history, seconds + time.monotonic() - started, out, steps_done=steps - start)


def take_step(
    step: int, prepared: Prepared, fabric: "Fabric", module: nn.Module, stepper: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """One step of the optimizer and of the teacher, counted from 0; the loss and the method's metrics.

    `module` and `stepper` are the method and its optimizer as `fabric.setup` returned them.
    """
    config, method, teacher = prepared.config, prepared.method, prepared.teacher
    # For layers that draw from the global generator, such as dropout.
    seed_torch(derive_seed(config.run.seed, "step", step, fabric.global_rank), fabric.device)
    for group in stepper.param_groups:
        group["lr"] = learning_rate(config, step)
    stepper.zero_grad()
    loss, metrics = module(prepared.batches(step), teacher)
    fabric.backward(loss)
    method.before_optimizer_step(step)
    if config.optim.clip_grad is not None:
        # A non-finite loss is reported by the loop, with or without clipping.
        fabric.clip_gradients(module, stepper, max_norm=config.optim.clip_grad, error_if_nonfinite=False)
    stepper.step()
    if fabric.world_size > 1 and fabric.device.type != "cuda":  # there BatchNorm is synchronised
        # DDP averages gradients only; without this the statistics, and so the teachers, would diverge. A teacher that
        # uses the statistics of the batch has running ones of its own.
        for buffer in (*method.student.buffers(), *teacher.module.buffers()):
            if buffer.is_floating_point():
                buffer.copy_(_mean(fabric, buffer))
    teacher.update(method.student)
    if reserved := sorted(RESERVED & metrics.keys()):
        raise UserError(f"{config.method} reports a metric named {reserved[0]!r}, a column of every run: rename it")
    return {"loss": loss, **metrics}


def _nonfinite(prepared: Prepared) -> set[str]:
    """The names of tensors of the method and the teacher that hold an inf or NaN."""
    states = {f"method.{name}": value for name, value in prepared.method.state_dict().items()}
    states |= {f"teacher.{name}": value for name, value in prepared.teacher.state_dict().items()}
    weights = {name: t for name, t in states.items() if isinstance(t, Tensor) and t.is_floating_point()}
    found = set(map(id, nonfinite([*weights.values()])))
    return {name for name, tensor in weights.items() if id(tensor) in found}


def _mean(fabric: "Fabric", value: Tensor) -> Tensor:
    """The mean over all processes."""
    result = fabric.all_reduce(value, reduce_op="mean")
    assert isinstance(result, Tensor)
    return result


def _open(out: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to resume from, if any."""
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
    """Refuse to resume a run with another configuration; other `steps` are fine if no schedule depends on them."""
    for name, (before, now) in config.differences(saved["config"], MAY_CHANGE).items():
        message = f"the run in {out} has {flag(name)} {before}, not {now}"
        if name != "steps":
            raise UserError(f"{message}: resume it unchanged, or choose another --out")
        if config.optim.lr_schedule != "constant" or config.teacher.momentum_schedule == "cosine":
            raise UserError(f"{message}: its schedule depends on the {before} steps; choose another --out")
        if config.run.steps < saved["step"]:
            raise UserError(f"{message}: it has trained {saved['step']} steps already")
    if saved["data"] != data:
        raise UserError(f"the images have changed since the run in {out} began: choose another --out")


def _result(history: list[Row], seconds: float, out: Path, steps_done: int) -> Result:
    last = history[-1]
    return Result(history, last["teacher_accuracy"], last["student_accuracy"], seconds, out / CHECKPOINT, steps_done)
