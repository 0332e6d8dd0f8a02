"""The options of each method: frozen dataclasses, one file a method, which import no torch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from spatial_ensemble.errors import UserError

TeacherNorm = Literal["running", "batch"]


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


def flag(name: str) -> str:
    """batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def require(options: object, ok: Callable[[float], bool], what: str, *names: str) -> None:
    """Refuse values of options that are out of range."""
    for name in names:
        if not ok(value := getattr(options, name)):
            raise UserError(f"{name} {value}: use {what}")


def at_least(options: object, least: float, *names: str) -> None:
    """Refuse values of options below a bound."""
    require(options, lambda value: value >= least, f"{least} or more", *names)


def check_types(values: Any) -> None:
    """Check every field of a dataclass against its type: bool, int, float, str, None, Literal, and unions of these.

    Raises:
        UserError: a value of another type, or a field whose type no flag and no file can hold.
    """
    hints = get_type_hints(type(values))
    for field in fields(values):
        hint, value = hints[field.name], getattr(values, field.name)
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        types = [part for part in parts if get_origin(part) is not Literal]
        if unknown := [kind for kind in types if kind not in (bool, int, float, str, NoneType)]:
            raise UserError(f"{flag(field.name)} has the type {unknown[0]}: use bool, int, float, str, None or Literal")
        if type(value) in types or (float in types and type(value) is int) or value in choices:
            continue
        names = [*map(str, choices), *(kind.__name__ for kind in types if kind is not NoneType)]
        what = f"one of {', '.join(names)}" if choices else " or ".join(names)
        raise UserError(f"{flag(field.name)} must be {what}; got {value!r}")
