"""Arms: the named settings that a study compares."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]

from spatial_ensemble.errors import UserError
from spatial_ensemble.training.config import Config

KNOWN = ("tma", "tma-matched", "se", "se-matched", "sts", "every")
SMOOTHINGS = ("tma", "tma-matched", "se", "sts")
MATCHED = {"sts": "tma-matched", "se": "se-matched"}
SHARED = ("method", "data", "path", "image_size", "skip_broken", "seed", "device")  # by all runs of a study


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares: a name, and fields of the configuration by their flat names."""

    name: str
    settings: Mapping[str, Any]

    @property
    def known(self) -> bool:
        """Whether it is one that `--smoothings` names."""
        return self.name in KNOWN

    @property
    def text(self) -> str:
        """Its settings in one line."""
        return ", ".join(f"{name} {'none' if value is None else value}" for name, value in self.settings.items())

    def configure(self, config: Config, seed: int) -> Config:
        """The configuration of one of its runs; UserError: a setting that does not exist, or is out of its range."""
        try:
            return config.replace(**self.settings, seed=seed)
        except UserError as error:
            raise UserError(f"arm {self.name}: {error}") from error


def known(name: str) -> Arm:
    """The arm that a smoothing's name stands for: the configuration with this smoothing."""
    if name not in KNOWN:
        raise UserError(f"--smoothings must be some of {', '.join(KNOWN)}; got {name!r}")
    return Arm(name, {"smoothing": name})


def parse(text: str) -> Arm:
    """An arm as the command line spells it, "NAME: FIELD=VALUE ...".

    Example:
        >>> parse("fast: momentum=0.8, preserve-prob=0.7")
        Arm(name='fast', settings={'momentum': 0.8, 'preserve_prob': 0.7})
    """
    name, colon, rest = text.partition(":")
    fields = [part.partition("=") for part in re.split(r"[,\s]+", rest.strip())]
    if not colon or not all(field and equals and value for field, equals, value in fields):
        raise UserError(f'--arm must be of the form "NAME: FIELD=VALUE FIELD=VALUE", got {text!r}')
    settings = {field.replace("-", "_"): _value(value) for field, _, value in fields}
    if len(settings) < len(fields):
        raise UserError(f"--arm {text!r} gives a field twice")
    return Arm(name.strip(), settings)


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)  # YAML 1.1 reads 1e-3 as a string
    return value


def check_counts(
    seeds: int, until: float | None = None, max_seeds: int | None = None, drop: bool = False, workers: int | None = None
) -> None:
    """Check the numbers that `compare` is given.

    Raises:
        UserError: one is out of its range, or belongs to another.
    """
    for name, count in (("seeds", seeds), ("max-seeds", max_seeds), ("workers", workers)):
        if count is not None and count < 1:
            raise UserError(f"--{name} must be at least 1, got {count}")
    if until is None and (drop or max_seeds is not None):
        raise UserError(f"{'--drop' if drop else '--max-seeds'} belongs to --until: use --seeds")
    if until is not None and not until > 0:
        raise UserError(f"--until must be a positive number of percentage points, got {until}")


def resolve(config: Config, smoothings: Sequence[str], own: Sequence[Arm]) -> tuple[Arm, ...]:
    """The arms of a study, checked, each with its smoothing written out.

    The setting `matched: NAME` gives an arm the settings of another (a known one, or one given before), and for its
    rule the moving average of the same expected speed.

    Raises:
        UserError: an unknown smoothing or field, a name given twice, or a value out of its range.
    """
    arms = {name: known(name) for name in smoothings}
    for arm in own:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", arm.name):
            raise UserError(f"arm {arm.name!r}: a name consists of letters, digits and - _ + .")
        if arm.name.lower() in {*KNOWN, *(name.lower() for name in arms)}:
            raise UserError(f"arm {arm.name}: the name is taken, choose another")
        if fixed := [name for name in SHARED if name in arm.settings]:
            raise UserError(f"arm {arm.name}: all arms of a study share {fixed[0]}; set it for the study")
        settings = {"smoothing": config.teacher.smoothing, **arm.settings}
        if "matched" in settings:
            settings = _matched(arm, arms)
        arms[arm.name] = Arm(arm.name, settings)
        arms[arm.name].configure(config, config.run.seed)
    if not arms:
        raise UserError("a study needs at least one arm: --smoothings or --arm")
    return tuple(arms.values())


def _matched(arm: Arm, before: Mapping[str, Arm]) -> dict[str, Any]:
    name = arm.settings["matched"]
    if name not in before and name not in KNOWN:
        raise UserError(f"arm {arm.name}: matched={name} is neither a known arm nor one given before it")
    source = before.get(name) or known(name)
    rule = source.settings["smoothing"]
    if rule not in MATCHED:
        raise UserError(f"arm {arm.name}: {name} is {rule}, only {' and '.join(MATCHED)} have a matched average")
    own = {field: value for field, value in arm.settings.items() if field != "matched"}
    return {**source.settings, "smoothing": MATCHED[rule], **own}
