"""Checkpoints: written atomically, read without executing code, verified by a digest and a schema."""

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from torch import Tensor

from spatial_ensemble.errors import UserError

FORMAT = 2
HINT = "give the .ckpt file that a run wrote"
PLAIN = (str, bytes, int, float, bool, type(None), torch.dtype)
# A type stands for its instances, [x] for a list of x; a dict names its keys, and a type among them allows others.
SCHEMA: dict[Any, Any] = {
    "format": int,
    "config": {"method": str, "data": str, "network": str, str: object},  # checked by `Config.from_dict`
    "step": int,
    "method": {str: object},  # tensors and the extra state of modules: checked by their own `load_state_dict`
    "teacher": {str: object},
    "optimizer": {"state": {int: {str: Tensor | float | None}}, "param_groups": [{"params": [int], str: object}]},
    "history": [{"step": int, "teacher_accuracy": float, "student_accuracy": float, str: float}],
    "running": {str: (Tensor, float | int)},
    "seconds": float,
    "data": {
        "name": str,
        "classes": [str],
        "channels": int,
        "size": int,
        "mean": [float],
        "std": [float],
        "digest": str,
    },
}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary file beside `path`, then rename it: a reader or a kill sees the old or the new file.

    Raises:
        OSError: the folder is missing or not writable; `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)  # noqa: PTH105 (Path.replace is the same call, this one says that it is atomic)
    finally:
        temporary.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove temporary files that killed calls of `write_whole` left beside `path`."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint with its digest; "format" is added to the content.

    Raises:
        UserError: a network keeps a state that no checkpoint can hold.
        OSError: as `write_whole`.
    """
    content = {**content, "format": FORMAT}
    mismatch = _mismatch(content, SCHEMA, "content")
    assert not mismatch, mismatch
    signed = {**content, "digest": digest(content)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            try:
                torch.save(signed, file)
            except RuntimeError as error:  # how torch reports a full disk
                raise OSError(f"{path} cannot be written; is the disk full? ({error})") from error
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: what `save` was given, and "format".

    Raises:
        UserError: no such file; not a checkpoint, or one of another format; damaged or edited.
        OSError: the file is not readable.
    """
    if not path.is_file():
        what = "is a folder, not a checkpoint" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint {path} {what}: {HINT}")
    with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # torch warns about files refused below
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            stored = content.pop("digest", None) if isinstance(content, dict) else None
            found = digest(content)
        except Exception as error:  # torch's reader raises nearly anything on damaged bytes
            raise UserError(f"{path} is not a checkpoint, or is cut short or damaged: {HINT}") from error
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise UserError(f"{path} is not a checkpoint of spatial-ensemble: {HINT}")
    if content["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {content['format']}, this version reads format {FORMAT}: use the version of "
            "spatial-ensemble that wrote it, or train again"
        )
    if stored != found:
        raise UserError(f"checkpoint {path} is damaged or was edited (wrong digest): use a copy, or train again")
    if mismatch := _mismatch(content, SCHEMA, "content") or _contradiction(content):
        raise UserError(f"checkpoint {path} does not hold what a run writes: {mismatch}")
    return content


def digest(content: object) -> str:
    """Digest of nested dicts, lists, tuples, tensors and plain values: 32 hexadecimal digits.

    It covers every key, every value with its type, and the dtype, shape and bytes of every tensor. It detects damage
    and careless edits; it is no authentication, since anyone can compute it.

    Example:
        >>> digest({"step": 1}) == digest({"step": 1}) != digest({"step": 1.0})
        True
    """
    found = hashlib.blake2b(digest_size=16)

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {list(value.shape)};".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            found.update(f"dict {len(value)};".encode())
            # torch keeps the versions of modules in an attribute of their state dict.
            for part in (*value.keys(), *value.values(), getattr(value, "_metadata", None)):
                add(part)
        elif isinstance(value, list | tuple):
            found.update(f"{type(value).__name__} {len(value)};".encode())
            for part in value:
                add(part)
        elif isinstance(value, PLAIN):
            found.update(f"{type(value).__name__} {value!r};".encode())
        else:
            kind = type(value).__name__
            raise UserError(f"a checkpoint cannot hold a {kind}: use tensors, numbers, str, list or dict")

    add(content)
    return found.hexdigest()


def _mismatch(value: Any, schema: Any, where: str) -> str:
    """The first place where `value` departs from `schema`; empty if none."""
    parts: list[tuple[Any, Any, str]]
    if isinstance(schema, type | UnionType):
        fits = schema is object or (isinstance(value, schema) and not isinstance(value, bool))
        return "" if fits else f"{where} is {type(value).__name__}, expected {getattr(schema, '__name__', schema)}"
    if not isinstance(value, type(schema)):
        return f"{where} is {type(value).__name__}, expected {type(schema).__name__}"
    if isinstance(schema, list | tuple):
        kinds = schema * len(value) if isinstance(schema, list) else schema
        if len(value) != len(kinds):
            return f"{where} has {len(value)} items, expected {len(kinds)}"
        parts = [(*pair, f"{where}[{index}]") for index, pair in enumerate(zip(value, kinds, strict=True))]
    else:
        rest = next((key for key in schema if isinstance(key, type)), None)  # the type of keys that have no name here
        if missing := [key for key in schema if key is not rest and key not in value]:
            return f"{where} has no {missing[0]!r}"
        if unknown := [key for key in value if key not in schema and not (rest and isinstance(key, rest))]:
            return f"{where} has the unknown key {unknown[0]!r}"
        parts = [(item, schema[key if key in schema else rest], f"{where}.{key}") for key, item in value.items()]
    return next(filter(None, (_mismatch(*part) for part in parts)), "")


def _contradiction(content: dict[str, Any]) -> str:
    """A value that no run writes, though its type is right; empty if none."""
    data = content["data"]
    if not len(data["mean"]) == len(data["std"]) == data["channels"]:
        return f"content.data.mean and content.data.std need {data['channels']} values, one a channel"
    if content["step"] < 0 or data["size"] < 1:
        return "content.step or content.data.size is too small"
    wrong = [name for name, (total, number) in content["running"].items() if total.shape != () or not number > 0]
    return f"content.running.{wrong[0]} is no sum of values" if wrong else ""
