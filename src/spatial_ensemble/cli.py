"""The command line: parse, call, print. What is heavy to import is imported once the arguments are known to be good."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_ensemble.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

PROG = "spatial-ensemble"
CHECKPOINT_HELP = "a .ckpt file that a run wrote"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments, without the program's name; None takes those of the process.

    Returns:
        The exit code: 0; 2 after one line on standard error for a user's mistake; 130 for Ctrl-C; 1 if standard output
        was closed.
    """
    try:
        with suppress(SystemExit):  # the parser's, after --help and --version
            _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # as by `| head`; Python would try to flush again on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError, argparse.ArgumentError) as error:
        message = " ".join(str(error).split())
    except ModuleNotFoundError as error:
        message = f"no module named {error.name!r}: pip install -e '.[train]' in a clone of {PROG}"
    except KeyboardInterrupt as error:
        print(f"{PROG}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    print(f"{PROG}: error: {message}", file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> None:
    from spatial_ensemble.training import flags

    arguments = [_underscored(argument) for argument in arguments] or ["--help"]
    command, start = arguments[0], None
    if command in ("train", "compare"):
        arguments, start = flags.first_pass(arguments)
    parser = _parser("COMMAND", "Smoothed teachers for student-teacher training: Spatial Ensemble and STS.")
    parser.add_argument("--version", action="version", version=f"{PROG} {version(PROG)}")
    commands = parser.add_subcommands(
        dest="command",
        metavar="COMMAND",
        title="commands",
        description=f"{PROG} COMMAND --help tells more.",
        required=False,
    )
    table: dict[str, tuple[Callable[[], ArgumentParser], Callable[[Namespace], None], str]] = {
        "compare": (_compare_parser, _compare, "train every arm over matched seeds, and report the differences"),
        "train": (_train_parser, _train, "one training run"),
        "evaluate": (_evaluate_parser, _evaluate, "accuracy, nearest neighbours or a linear probe of a run's networks"),
        "export": (_export_parser, _export, "the weights of a network as safetensors"),
        "predict": (_predict_parser, _predict, "the class of an image, or of every image in a folder"),
    }
    for name, (build, _, text) in table.items():
        subparser = build()
        if name in ("compare", "train"):
            flags.add_flags(subparser, start)
        commands.add_subcommand(name, subparser, help=text)
    given = parser.parse_args(arguments)
    table[given.command][1](given[given.command])


def _train_parser() -> "ArgumentParser":
    parser = _parser(
        "train METHOD", "Train a student and its teacher; write config.yaml, log.csv and last.ckpt into --out."
    )
    parser.add_argument("--out", type=str, help="folder of the run (default: runs/METHOD-DATA-SMOOTHING-seedSEED)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    return parser


def _train(given: "Namespace") -> None:
    from spatial_ensemble.training import flags, recipes

    if given.list:
        for name, recipe in recipes.RECIPES.items():
            print(f"{name:22}", " ".join((recipe.__doc__ or "").split()))
        return
    config = flags.configuration(given)
    from spatial_ensemble.training.run import CHECKPOINT, train

    data, smoothing, seed = config.images.data, config.teacher.smoothing, config.run.seed
    out = given.out or f"runs/{config.method}-{data}-{smoothing}-seed{seed}"
    try:
        result = train(config, Path(out), resume=given.resume)
    except KeyboardInterrupt:
        kept = f"; --resume --out {out} continues from its last checkpoint" if (Path(out) / CHECKPOINT).exists() else ""
        raise KeyboardInterrupt(f"interrupted{kept}") from None
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's processes prints for all
        return
    if not result.steps_done:
        print(f"the run in {out} is finished: no step is left")
    if math.isnan(result.teacher_accuracy):
        print(f"trained, and not evaluated, since no image has a label: {result.checkpoint}")
    else:
        print(f"teacher {result.teacher_accuracy:.2f} %, student {result.student_accuracy:.2f} %: {result.checkpoint}")


def _compare_parser() -> "ArgumentParser":
    parser = _parser("compare", "Train every arm over matched seeds, and report what the differences show.")
    parser.add_argument("--out", type=str, default="comparison", help="folder of results, report and runs")
    parser.add_argument("--seeds", type=int, default=3, help="number of matched seeds, counted up from --seed")
    parser.add_argument(
        "--smoothings",
        nargs="*",
        help="known arms: some of tma, tma-matched, se, se-matched, sts and every (default: tma tma-matched se sts)",
    )
    parser.add_argument(
        "--arm",
        action="append",
        type=str,
        help='another arm, "NAME: FIELD=VALUE FIELD=VALUE": the configuration with these settings; matched=NAME takes '
        "those of another arm, and the moving average of its speed; may be repeated",
    )
    parser.add_argument("--arms", type=dict[str, dict[str, Any]], help="in a YAML file, NAME: {FIELD: VALUE}: as --arm")
    parser.add_argument(
        "--until",
        type=float,
        help="add seeds until every 95 % interval of a difference reaches at most this many points to each side",
    )
    parser.add_argument("--max_seeds", type=int, help="with --until: the most seeds (default: 64)")
    parser.add_argument("--drop", action="store_true", help="with --until: no more seeds for an arm shown to be worse")
    parser.add_argument("--workers", type=int, help="processes at a time (default: one a core, on a GPU one)")
    return parser


def _compare(given: "Namespace") -> None:
    from spatial_ensemble.studies.arms import SMOOTHINGS, Arm, check_counts, parse, resolve
    from spatial_ensemble.training.flags import configuration

    config = configuration(given)
    counts = {name: given[name] for name in ("seeds", "until", "max_seeds", "drop", "workers")}
    check_counts(**counts)
    smoothings = SMOOTHINGS if given.smoothings is None else given.smoothings
    arms = [*(Arm(name, fields) for name, fields in (given.arms or {}).items()), *map(parse, given.arm or [])]
    configs = [arm.configure(config, config.run.seed) for arm in resolve(config, smoothings, arms)]
    from spatial_ensemble.training.prepare import check_names

    for one in configs:
        check_names(one)
    from spatial_ensemble.studies.compare import compare

    compare(config, Path(given.out), smoothings=smoothings, arms=arms, **counts)


def _evaluate_parser() -> "ArgumentParser":
    parser = _parser("evaluate CHECKPOINT", "Measure a network of a run on the test images of a data set.")
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT_HELP)
    parser.add_argument("--data", type=str, help="digits, cifar10, ..., or folder (default: that of the training)")
    parser.add_argument("--path", type=str, help="the folder of the data; none for digits")
    _add_network(parser)
    parser.add_argument(
        "--protocol",
        choices=("accuracy", "knn", "linear", "linear-paper"),
        help="default: the method's own; linear-paper has the paper's BatchNorm1d",
    )
    return parser


def _evaluate(given: "Namespace") -> None:
    from spatial_ensemble.training.evaluate import evaluate

    how = {"which": given.network, "skip_broken": given.skip_broken, "device": given.device}
    value, protocol = evaluate(Path(given.checkpoint), given.data, given.path, protocol=given.protocol, **how)
    print(f"{protocol} of the {given.network}: {value:.2f} %")


def _export_parser() -> "ArgumentParser":
    parser = _parser("export CHECKPOINT OUT.safetensors", "Write the weights of a network of a run as safetensors.")
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT_HELP)
    parser.add_argument("out", type=str, help="the file to write")
    parser.add_argument("--network", choices=("teacher", "student"), default="teacher", help="whose weights")
    return parser


def _export(given: "Namespace") -> None:
    from spatial_ensemble.training.export import export

    export(Path(given.checkpoint), Path(given.out), which=given.network)
    print(f"{given.network} written to {given.out}")


def _predict_parser() -> "ArgumentParser":
    description = "Print path, class and probability, separated by tabs, of an image or of every image in a folder."
    parser = _parser("predict CHECKPOINT IMAGES", description)
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT_HELP)
    parser.add_argument("images", type=str, help="an image, or a folder that is searched with its subfolders")
    _add_network(parser)
    return parser


def _predict(given: "Namespace") -> None:
    from spatial_ensemble.training.predict import predict

    how = {"which": given.network, "skip_broken": given.skip_broken, "device": given.device}
    for path, name, probability in predict(Path(given.checkpoint), Path(given.images), **how):
        shown = os.fsencode(path).decode(errors="backslashreplace")  # a file name need not be text
        print(f"{shown}\t{name}\t{probability:.4f}")


def _add_network(parser: "ArgumentParser") -> None:
    parser.add_argument("--network", choices=("teacher", "student"), default="teacher", help="which network")
    parser.add_argument("--skip_broken", action="store_true", help="skip images that cannot be read")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def _parser(usage: str, description: str) -> "ArgumentParser":
    """A parser whose help spells flags with hyphens."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def format_help(self, *args: Any) -> str:
            return re.sub(r"--[a-z_]+", lambda flag: flag[0].replace("_", "-"), super().format_help(*args))

        def _print_message(self, message: str, file: Any = None) -> None:  # argparse's ignores a closed output
            print(message, end="", file=file)

    return Parser(
        prog=PROG,
        usage=f"{PROG} {usage} [options]",
        description=description,
        print_config=None,
        exit_on_error=False,
        allow_abbrev=False,
    )


def _underscored(argument: str) -> str:
    """--preserve-prob=0.5 -> --preserve_prob=0.5: jsonargparse names flags after the fields."""
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else argument


if __name__ == "__main__":
    sys.exit(main())
