"""How a teacher teaches: one file a method, found by its name."""

import importlib
import pkgutil

from spatial_ensemble.errors import UserError
from spatial_ensemble.methods.base import Method, Student

__all__ = ["Method", "Student", "get", "names"]


def names() -> list[str]:
    """The methods that `get` knows by name: the files of this package.

    Example:
        >>> "fixmatch" in names()
        True
    """
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]


def get(name: str) -> type[Method]:
    """The method of that name.

    Args:
        name: one of `names()`, or the dotted path `package.module.Class` of your own.

    Raises:
        UserError: for a name that is neither, and for a class that is not a `Method`.

    Example:
        >>> get("fixmatch").__name__
        'FixMatch'
    """
    if name in names():
        module = importlib.import_module(f"{__name__}.{name}")
        own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
        (found,) = [value for value in own if isinstance(value, type) and issubclass(value, Method)]
        return found
    try:
        method = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(names())
        raise UserError(
            f"method '{name}' is not known: use one of {known}, or the path package.module.Class of yours ({error})"
        ) from error
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"method '{name}' is not a class derived from spatial_ensemble.methods.Method")
    return method
