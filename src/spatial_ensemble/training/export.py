"""Export a network of a run as safetensors, with all that is needed to use it without this package."""

import json
from pathlib import Path

from spatial_ensemble.errors import UserError
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.build import restore
from spatial_ensemble.training.evaluate import Which


def export(path: Path, out: Path, *, which: Which = "teacher") -> None:
    """Write the weights of a network as safetensors, atomically.

    The metadata are strings: network (name of the backbone), channels, size (side in pixels), classes (JSON list of
    names), mean and std (JSON lists, in units of the full range), and the origin of the weights. Weights are named
    backbone.* and head.*.

    Args:
        path: the checkpoint.
        out: the file to write.
        which: the teacher or the student.

    Raises:
        UserError: no checkpoint, or no such folder.
    """
    from safetensors.torch import save

    if out.is_dir() or not out.parent.is_dir():
        what = "is a folder: give the name of a file" if out.is_dir() else f"cannot be written: no folder {out.parent}"
        raise UserError(f"{out} {what}")
    content, config, method, teacher = restore(path)
    data, network = content["data"], teacher.module if which == "teacher" else method.student
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
