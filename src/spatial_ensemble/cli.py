"""The command line: parse, call, print. What is heavy to import is imported once the arguments are known to be good."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_ensemble.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from spatial_ensemble.training.config import Config

PROG = "spatial-ensemble"
OVERVIEW = f"""usage: {PROG} COMMAND ...

Smoothed teachers for student-teacher training: Spatial Ensemble and Spatial-Temporal Smoothing.

commands:
  compare                    train with each smoothing over matched seeds, and report what the differences show
  train METHOD               one training run
  evaluate CHECKPOINT        accuracy, nearest neighbours or a linear probe of a run's networks
  export CHECKPOINT OUT      the weights of a network as safetensors
  predict CHECKPOINT IMAGES  the class of an image, or of every image in a folder

{PROG} COMMAND --help tells more, {PROG} --version the version."""
CHECKPOINT_HELP = "a .ckpt file that a run wrote"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments, without the program's name; None takes those of the process.

    Returns:
        The exit code: 0; 2 after one line on standard error for a mistake of the user's; 130 for Ctrl-C; 1 where nobody
        reads standard output any more.
    """
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # as by `| head`: what could not be written is not wanted, and Python's exit is not to try
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError, argparse.ArgumentError) as error:
        message = _plain(str(error))
    except ModuleNotFoundError as error:
        message = f"no module named {error.name!r}: pip install -e '.[train]' in a clone of {PROG}"
    except KeyboardInterrupt as error:
        print(f"{PROG}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    print(f"{PROG}: error: {message}", file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "compare": _compare,
        "train": _train,
        "evaluate": _evaluate,
        "export": _export,
        "predict": _predict,
    }
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(OVERVIEW)
    elif name == "--version":
        from importlib.metadata import version

        print(PROG, version(PROG))
    elif name in commands:
        commands[name]([_underscored(argument) for argument in arguments[1:]])
    else:
        raise UserError(f"unknown command {name!r}: use {', '.join(commands)}, or --help")


def _train(arguments: list[str]) -> None:
    from spatial_ensemble.training import recipes

    if "--list" in arguments:
        for name, recipe in recipes.RECIPES.items():
            print(f"{name:22}", " ".join((recipe.__doc__ or "").split()))
        return
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--method", *arguments]
    parser = _parser(
        "train METHOD", "Train a student and its teacher; write config.yaml, log.csv and last.ckpt into --out."
    )
    parser.add_argument("--out", type=str, help="folder of the run (default: runs/METHOD-DATA-SMOOTHING-seedSEED)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    config, given = _configuration(parser, arguments)
    from spatial_ensemble.training.run import CHECKPOINT, train

    out = given.out or f"runs/{config.method}-{config.images.data}-{config.teacher.smoothing}-seed{config.run.seed}"
    try:
        result = train(config, Path(out), resume=given.resume)
    except KeyboardInterrupt:
        kept = f"; --resume --out {out} goes on from its last checkpoint" if (Path(out) / CHECKPOINT).exists() else ""
        raise KeyboardInterrupt(f"interrupted{kept}") from None
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's processes says it for all
        return
    if not result.steps_done:
        print(f"the run in {out} is finished: no step is left")
    if math.isnan(result.teacher_accuracy):
        print(f"trained, and not judged, since no image has a label: {result.checkpoint}")
    else:
        print(f"teacher {result.teacher_accuracy:.2f} %, student {result.student_accuracy:.2f} %: {result.checkpoint}")


def _compare(arguments: list[str]) -> None:
    parser = _parser("compare", "Train with each smoothing over matched seeds, and report what the differences show.")
    parser.add_argument("--out", type=str, default="comparison", help="folder of results, report and runs")
    parser.add_argument("--seeds", type=int, default=3, help="how many matched seeds, counted up from --seed")
    parser.add_argument("--smoothings", nargs="+", help="some of tma, tma-matched, se and sts (default: all)")
    parser.add_argument("--workers", type=int, help="processes at a time (default: one a core, on a GPU one)")
    parser.add_argument("--smoothing", type=str, help=argparse.SUPPRESS)  # so that a run's config.yaml is accepted
    config, given = _configuration(parser, arguments, method="fixmatch")
    from spatial_ensemble.studies.compare import SMOOTHINGS, compare

    smoothings = given.smoothings or SMOOTHINGS
    compare(config, Path(given.out), seeds=given.seeds, smoothings=smoothings, workers=given.workers)


def _evaluate(arguments: list[str]) -> None:
    parser = _parser("evaluate CHECKPOINT", "Measure a network of a run on the test images of a data set.")
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT_HELP)
    parser.add_argument("--data", type=str, help="digits, cifar10, ..., or folder (default: that of the training)")
    parser.add_argument("--path", type=str, help="the folder of the data; none for digits")
    _add_network_arguments(parser)
    parser.add_argument(
        "--protocol",
        choices=("accuracy", "knn", "linear", "linear-paper"),
        help="default: what the method is judged by; linear-paper has the paper's BatchNorm1d",
    )
    given = _parse(parser, arguments)
    from spatial_ensemble.training.evaluate import evaluate

    value, protocol = evaluate(
        Path(given.checkpoint),
        given.data,
        given.path,
        which=given.network,
        protocol=given.protocol,
        skip_broken=given.skip_broken,
        device=given.device,
    )
    print(f"{protocol} of the {given.network}: {value:.2f} %")


def _export(arguments: list[str]) -> None:
    parser = _parser("export CHECKPOINT OUT.safetensors", "Write the weights of a network of a run as safetensors.")
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT_HELP)
    parser.add_argument("out", type=str, help="the file to write")
    parser.add_argument("--network", choices=("teacher", "student"), default="teacher", help="whose weights")
    given = _parse(parser, arguments)
    from spatial_ensemble.training.export import export

    export(Path(given.checkpoint), Path(given.out), which=given.network)
    print(f"{given.network} written to {given.out}")


def _predict(arguments: list[str]) -> None:
    description = "Print path, class and probability, separated by tabs, of an image or of every image in a folder."
    parser = _parser("predict CHECKPOINT IMAGES", description)
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT_HELP)
    parser.add_argument("images", type=str, help="an image, or a folder that is searched with all its folders")
    _add_network_arguments(parser)
    given = _parse(parser, arguments)
    from spatial_ensemble.training.predict import predict

    found = predict(
        Path(given.checkpoint),
        Path(given.images),
        which=given.network,
        skip_broken=given.skip_broken,
        device=given.device,
    )
    for path, name, probability in found:
        shown = os.fsencode(path).decode(errors="backslashreplace")  # a name need not be text
        print(f"{shown}\t{name}\t{probability:.4f}")


def _add_network_arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("--network", choices=("teacher", "student"), default="teacher", help="which network")
    parser.add_argument("--skip_broken", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def _configuration(
    parser: "ArgumentParser", arguments: list[str], *, method: str | None = None
) -> tuple["Config", "Namespace"]:
    """The configuration that the arguments ask for, and the other arguments.

    What counts, from weak to strong: the recipe (or the defaults for method and data), the configuration of the run
    that is resumed, --config, the flags.

    Args:
        parser: with the flags of the command alone.
        arguments: those of the command line.
        method: the one to take where nothing names one.
    """
    from jsonargparse import ActionYesNo

    from spatial_ensemble import methods
    from spatial_ensemble.training import recipes
    from spatial_ensemble.training.config import PARTS, SETTINGS, Config, options_of, read_yaml

    files, arguments = _take(arguments, "--config")
    said: dict[str, Any] = {}
    for file in files:
        said |= read_yaml(Path(file))
    early = ("method", "data", "recipe", "epochs", "out")  # what the flags themselves depend on
    said |= {name: values[-1] for name in early if (values := _take(arguments, f"--{name}")[0])}
    if ("--resume" in arguments or said.get("resume")) and Path(saved := f"{said.get('out')}/config.yaml").is_file():
        files, said = [saved, *files], read_yaml(Path(saved)) | said
    recipe, epochs = said.get("recipe"), said.get("epochs")
    if epochs is not None and not str(epochs).isdecimal():
        raise UserError(f"--epochs: expected int, got {epochs}")
    if epochs is not None and recipe is None:
        raise UserError("--epochs belongs to a --recipe: use --steps")
    start = None if recipe is None else recipes.get(str(recipe), None if epochs is None else int(epochs))
    method = said.get("method") or (start.method if start else method)
    if start and method != start.method:
        raise UserError(f"the recipe {recipe} is one for {start.method}, not for {method}")

    parser.add_argument(
        "--config",
        action="config",
        help="a YAML file of flags spelt with underscores, such as a config.yaml",
    )
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration and exit")
    parser.add_argument("--recipe", type=str, help="start from published hyper-parameters: see train --list")
    parser.add_argument("--epochs", type=int, help="length of a recipe, where it is laid out in epochs")
    parser.add_argument("--method", type=str, help=f"{', '.join(methods.names())}, or package.module.Class")
    parser.add_argument("--data", type=str, help="digits, cifar10, cifar100, svhn, stl10 or folder")
    parser.add_argument("--skip_broken", action=ActionYesNo, help="leave out, and count, images that cannot be read")
    added = {"data", "skip_broken", *(["smoothing"] if "smoothings" in {a.dest for a in parser._actions} else [])}
    for part in PARTS.values():
        parser.add_class_arguments(part, skip=added & {field.name for field in fields(part)})
    if method is not None:
        start = start or recipes.default(str(method), str(said.get("data") or "digits"))
        try:
            parser.add_class_arguments(options_of(start.method))
        except ValueError as error:
            raise UserError(f"{start.method} has an option named as a flag: rename it ({error})") from error
        parser.set_defaults(start.to_dict())
    given = _parse(parser, [*(f"--config={file}" for file in files), *arguments])
    if given.method is None:
        raise UserError(f"which method? {PROG} train METHOD, with one of {', '.join(methods.names())}")
    if given.data is None:
        raise UserError("which data? --data digits, cifar10, cifar100, svhn, stl10 or folder")
    known = {"method", *SETTINGS, *(field.name for field in fields(options_of(given.method)))}
    flat = {name: value for name, value in given.as_dict().items() if name in known}
    config = Config.from_dict(flat)
    if given.print_config:
        print(config.to_yaml(), end="")
        raise SystemExit(0)
    return config, given


def _parser(usage: str, description: str) -> "ArgumentParser":
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        prog=f"{PROG} {usage.split()[0]}",
        usage=f"{PROG} {usage} [options]",
        description=description,
        print_config=None,
        exit_on_error=False,
        allow_abbrev=False,
    )


def _parse(parser: "ArgumentParser", arguments: list[str]) -> "Namespace":
    """Parse, or print the help, in which every flag is spelt with hyphens."""
    if {"-h", "--help"} & set(arguments):
        print(re.sub(r"--[a-z_]+", lambda flag: flag[0].replace("_", "-"), parser.format_help()))
        raise SystemExit(0)
    return parser.parse_args(arguments)


def _take(arguments: list[str], flag: str) -> tuple[list[str], list[str]]:
    """What is given to a flag, as `--flag value` or `--flag=value` wherever it stands, and the arguments without it.

    Example:
        >>> _take(["--data", "digits", "--steps=5"], "--data")
        (['digits'], ['--steps=5'])
    """
    values, rest = [], []
    following = iter(arguments)
    for argument in following:
        name, equals, value = argument.partition("=")
        if name != flag:
            rest.append(argument)
        elif (found := value if equals else next(following, None)) is not None:
            values.append(found)
        else:
            raise UserError(f"{flag}: expected one argument")
    return values, rest


def _underscored(argument: str) -> str:
    """--preserve-prob=0.5 -> --preserve_prob=0.5: jsonargparse knows the flags by the names of the arguments."""
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else argument


def _plain(message: str) -> str:
    """A message on one line, with what jsonargparse calls a parser key named as the flag it is.

    Example:
        >>> _plain("Parser key \\"batch_size\\":\\n  Expected a <class 'int'>. Got value: many")
        '--batch-size: expected int, got many'
    """
    line = " ".join(message.split())
    line = re.sub(r'Parser key "(\w+)":', lambda key: f"--{key[1].replace('_', '-')}:", line)
    line = re.sub(r"<class '(\w+)'>", r"\1", line)
    line = re.sub(r"Expected an? (?:typing\.Literal)?(.*?)\. Got value:", r"expected \1, got", line)
    return re.sub(r"(?<!\S)--[a-z_]+", lambda flag: flag[0].replace("_", "-"), line)


if __name__ == "__main__":
    sys.exit(main())
