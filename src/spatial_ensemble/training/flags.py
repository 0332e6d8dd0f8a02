"""The flags of a configuration on the command line. Imports no torch."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_ensemble import methods
from spatial_ensemble.errors import UserError
from spatial_ensemble.training import recipes
from spatial_ensemble.training.config import PARTS, SETTINGS, Config, options_of, read_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def first_pass(arguments: list[str]) -> tuple[list[str], Config | None]:
    """The arguments, with configuration files first so that flags win, and the configuration that all defaults are of.

    Precedence, from weak to strong: the recipe (or the defaults for method and data), the configuration of the run that
    is resumed, --config, the flags. The configuration is None if no method is known and none is needed.
    """
    command, *rest = arguments
    if command == "train" and rest and not rest[0].startswith("-"):
        rest = ["--method", *rest]
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config", action="append", default=[])
    known, rest = early.parse_known_args(rest)
    for name in ("method", "data", "recipe", "out"):
        early.add_argument(f"--{name}", default=argparse.SUPPRESS)
    early.add_argument("--epochs", type=int, default=argparse.SUPPRESS)
    early.add_argument("--resume", action="store_true", default=argparse.SUPPRESS)
    flags = vars(early.parse_known_args(rest)[0])

    files: list[str] = known.config
    said: dict[str, Any] = {}
    for file in files:
        said |= read_yaml(Path(file))
    said |= flags
    if said.get("resume") and Path(saved := f"{said.get('out')}/config.yaml").is_file():
        files, said = [saved, *files], read_yaml(Path(saved)) | said
    arguments = [command, *(f"--config={file}" for file in files), *rest]
    method, recipe, epochs = said.get("method"), said.get("recipe"), said.get("epochs")
    if epochs is not None and type(epochs) is not int:
        raise UserError(f"--epochs must be int, got {epochs!r}")
    if recipe is not None:
        start = recipes.get(str(recipe), epochs)
        if method not in (None, start.method):
            raise UserError(f"the recipe {recipe} is one for {start.method}, not for {method}")
        return arguments, start
    if epochs is not None:
        raise UserError("--epochs belongs to a --recipe: use --steps")
    if method is None and command == "train":
        if {"-h", "--help", "--list"} & set(rest):
            return arguments, None
        raise UserError(f"which method? spatial-ensemble train METHOD, with one of {', '.join(methods.names())}")
    return arguments, recipes.default(str(method or "fixmatch"), str(said.get("data") or "digits"))


def add_flags(parser: "ArgumentParser", start: Config | None) -> None:
    """The flags of a configuration, with what to start from as their defaults."""
    from jsonargparse import ActionYesNo

    parser.add_argument(
        "--config", action="config", help="a YAML file of flags spelt with underscores, such as a config.yaml"
    )
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration and exit")
    parser.add_argument("--recipe", type=str, help="start from published hyper-parameters: see train --list")
    parser.add_argument("--epochs", type=int, help="length of a recipe that is given in epochs")
    parser.add_argument("--method", type=str, help=f"{', '.join(methods.names())}, or package.module.Class")
    parser.add_argument("--skip_broken", action=ActionYesNo, help="skip, and count, images that cannot be read")
    for part in PARTS.values():
        parser.add_class_arguments(part, skip={"skip_broken"} if "skip_broken" in part.__dataclass_fields__ else None)
    if start is None:
        parser.set_defaults(data="digits")
        return
    try:
        parser.add_class_arguments(options_of(start.method))
    except ValueError as error:
        raise UserError(f"{start.method} has an option named as a flag: rename it ({error})") from error
    parser.set_defaults(start.to_dict())


def configuration(given: "Namespace") -> Config:
    """The configuration that was asked for."""
    names = {"method", *SETTINGS, *(field.name for field in fields(options_of(given.method)))}
    config = Config.from_dict({name: value for name, value in given.as_dict().items() if name in names})
    if given.print_config:
        print(config.to_yaml(), end="")
        raise SystemExit(0)
    return config
