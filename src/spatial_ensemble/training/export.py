"""A network of a run as safetensors: weights, and all that is needed to use them without this package."""

import json
from pathlib import Path

from spatial_ensemble.errors import UserError
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.build import restore
from spatial_ensemble.training.evaluate import Which


def export(path: Path, out: Path, *, which: Which = "teacher") -> None:
    """Write the weights of a network as safetensors, whole or not at all.

    The metadata are strings: network (name of the backbone), channels, size (pixels a side), classes (a JSON list of
    names), mean and std (JSON lists, in units of the full range), and where the weights come from. Weights of the
    backbone are named backbone.*, those of what stands on it head.*.

    Args:
        path: the checkpoint.
        out: the file to write.
        which: the teacher or the student.

    Raises:
        UserError: no checkpoint, or no folder to write into.
    """
    from safetensors.torch import save

    if out.is_dir() or not out.parent.is_dir():
        what = "is a folder: give the name of a file" if out.is_dir() else f"cannot be written: no folder {out.parent}"
        raise UserError(f"{out} {what}")
    content = checkpoint.load(path)
    config, method, teacher = restore(content, path)
    data = content["data"]
    network = teacher.module if which == "teacher" else method.student
    metadata = {
        "format": "pt",
        "made_by": "spatial-ensemble",
        "weights": which,
        "method": config.method,
        "smoothing": config.teacher.smoothing,
        "step": str(content["step"]),
        "network": str(config.model.network),
        "channels": str(data["channels"]),
        "size": str(data["size"]),
        **{name: json.dumps(list(data[name])) for name in ("classes", "mean", "std")},
    }
    # Cloned, because safetensors refuses tensors that share memory (tied weights).
    weights = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    checkpoint.write_whole(out, lambda temporary: temporary.write_bytes(save(weights, metadata)))
