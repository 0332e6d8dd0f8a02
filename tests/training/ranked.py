"""What two processes do that torchrun starts with this file: each writes what it saw to rank0.json or rank1.json."""

import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from runs import SHORT, Killed, kill_at

from spatial_ensemble import UserError
from spatial_ensemble.data.sources import load
from spatial_ensemble.methods.fixmatch import FixMatch
from spatial_ensemble.training import prepare, run
from spatial_ensemble.training.run import train

RANK = int(os.environ.get("RANK", 0))
CONFIG = SHORT.replace(steps=4, batch_size=20, lr_schedule="constant", device="cpu", eval_every=2)


class Plain(torch.nn.Sequential):
    """A network in which no image bears on another's outputs."""

    def __init__(self, channels, size):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(channels * size**2, 16), torch.nn.ReLU())
        self.num_features = 16


PLAIN = CONFIG.replace(network="ranked.Plain", eval_every=4, checkpoint_every=3)


class Uneven(FixMatch):
    """The first process reports a, the second one b and then a."""

    def forward(self, batch, teacher):
        reports = [[{"a": 1.0}, {"a": 2.0}], [{"b": 5.0}, {"b": 6.0, "a": 9.0}]]
        values = reports[RANK][batch.step] | {"images": float(len(batch.labels))}
        return super().forward(batch, teacher)[0], {name: torch.tensor(value) for name, value in values.items()}


class Broken(FixMatch):
    """The second process has what is not finite."""

    def __init__(self, backbone, num_classes, options):
        super().__init__(backbone, num_classes, options)
        self.register_buffer("own", torch.zeros(()))

    def forward(self, batch, teacher):
        self.own.fill_(RANK * torch.nan)
        return super().forward(batch, teacher)


def message(config, out):
    try:
        train(config, out, progress=False)
    except UserError as error:
        return str(error)


def alike(step, prepared, *args, original=run.take_step):
    metrics = original(step, prepared, *args)
    assert prepared.teacher.verify_ranks() == {}
    return metrics


def main(out):
    seen, asked = {}, []

    def slow_first(*args, **kwargs):
        """As a download: the second process finds what the first one has brought."""
        asked.append(RANK)
        time.sleep(0.3 * (RANK == 0))
        (out / f"brought{RANK}").touch()
        assert (out / "brought0").exists()
        return load(*args, **kwargs)

    def fail_in(rank):
        def fail(*args, **kwargs):
            asked.append(RANK)
            if rank == RANK:
                raise UserError(f"no network in {rank}")
            return load(*args, **kwargs)

        return fail

    with mock.patch.object(run, "take_step", alike):
        for method in ("fixmatch", "mean_teacher"):
            seen[method] = train(CONFIG.replace(method=method), out / method, progress=False).history
    seen["straight"] = train(PLAIN, out / "straight", progress=False).history
    try:
        train(PLAIN, out / "killed", progress=False, on_step=kill_at(3))
    except Killed:
        if RANK == 0:
            (out / "kept.ckpt").write_bytes((out / "killed" / "last.ckpt").read_bytes())
    torch.distributed.barrier()  # as the first process alone writes
    seen["resumed"] = train(PLAIN, out / "killed", resume=True, progress=False).history
    seen["uneven"] = train(PLAIN.replace(method="ranked.Uneven", steps=2), out / "uneven", progress=False).history
    seen["broken"] = message(PLAIN.replace(method="ranked.Broken"), out / "broken")
    for name, stand_in in {"slow": slow_first, "first": fail_in(0), "second": fail_in(1)}.items():
        asked.clear()
        with mock.patch.object(prepare.sources, "load", stand_in):
            seen[name] = message(PLAIN.replace(steps=1), out / name), list(asked)
    (out / f"rank{RANK}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
