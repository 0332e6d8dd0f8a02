"""How a teacher teaches: one file a method, found by its name, and its options in `options`, without torch."""

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING, Any

from spatial_ensemble.errors import UserError

if TYPE_CHECKING:
    from spatial_ensemble.methods.base import Method, Student

__all__ = ["Method", "Student", "get", "names", "options_of"]


def __getattr__(name: str) -> Any:
    """Import the base classes, and with them torch, when they are first asked for."""
    if name in ("Method", "Student"):
        return getattr(importlib.import_module(f"{__name__}.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def names() -> list[str]:
    """The methods that `get` knows by name: the files of this package."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", "options")]


def options_of(name: str) -> type[Any]:
    """The dataclass of a method's options, by its name as for `get`. Imports no torch for those of this package.

    Example:
        >>> options_of("linear")()
        LinearOptions(norm=True)
    """
    if name in names():
        return _only_class(importlib.import_module(f"{__name__}.options.{name}"))
    return get(name).Options


def get(name: str) -> "type[Method]":
    """The method of that name.

    Args:
        name: one of `names()`, or the dotted path `package.module.Class` of your own.

    Raises:
        UserError: an unknown name, or a class that is not a `Method`.

    Example:
        >>> get("fixmatch").__name__
        'FixMatch'
    """
    if name in names():
        module = importlib.import_module(f"{__name__}.{name}")
        return _only_class(module, module.Method)
    try:
        method = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(names())
        raise UserError(
            f"method '{name}' is not known: use one of {known}, or the path package.module.Class of yours ({error})"
        ) from error
    from spatial_ensemble.methods.base import Method

    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"method '{name}' is not a class derived from spatial_ensemble.methods.Method")
    return method


def _only_class(module: ModuleType, base: type = object) -> type[Any]:
    """The one class derived from `base` that a module defines."""
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
    (found,) = [kind for kind in classes if kind.__module__ == module.__name__]
    return found
