"""Checkpoints: written whole or not at all, and read without running any code they hold."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spatial_ensemble.errors import UserError

FORMAT = 1
KEYS = {"format", "config", "step", "method", "teacher", "optimizer", "history", "running", "seconds", "data"}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary file beside `path`, then put it in place: a reader or a kill sees the old or the new.

    Raises:
        OSError: the folder is missing or cannot be written to; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)  # noqa: PTH105 (Path.replace is the same call, this one says that it is atomic)
    finally:
        temporary.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove what `write_whole` left beside `path` where its process was killed."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; `content` holds every key of KEYS but "format".

    Raises:
        OSError: as `write_whole`.
    """
    content = {"format": FORMAT, **content}
    assert set(content) == KEYS

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # what its writer makes of a full disk
                raise OSError(f"{path} cannot be written; is the disk full? ({error})") from error
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UserError: no such file, cut short, not a checkpoint, or a checkpoint of something else.
    """
    if not path.is_file():
        what = "is a folder, not a checkpoint" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint {path} {what}: give the .ckpt file that a run wrote")
    try:
        with warnings.catch_warnings(action="ignore"):  # it comments on files that are refused right after
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on damaged bytes torch's reader raises nearly anything
        raise UserError(f"{path} is not a checkpoint, or is cut short: give the .ckpt file that a run wrote") from error
    if not isinstance(content, dict) or not set(content) >= KEYS:
        raise UserError(f"{path} is not a checkpoint of spatial-ensemble: give the .ckpt file that a run wrote")
    if content["format"] != FORMAT:
        raise UserError(f"checkpoint {path} has format {content['format']}, this version reads format {FORMAT}")
    return content
