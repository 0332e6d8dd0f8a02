"""The result of a study: one typed value behind results.json, the terminal table, the report and the figures."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np

from spatial_ensemble import methods
from spatial_ensemble.errors import UserError
from spatial_ensemble.studies import statistics
from spatial_ensemble.studies.arms import Arm, known
from spatial_ensemble.studies.job import Run
from spatial_ensemble.studies.statistics import Pair, Summary, mean_interval
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.config import Config

BASELINES = ("tma", "tma-matched")
PACKAGES = ("spatial-ensemble", "torch", "torchvision", "lightning", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Design:
    """How the number of seeds is chosen, and what counts as no difference; both in percentage points."""

    until: float | None = None  # half-width that every interval is to reach; None: the number of seeds is fixed
    margin: float = 1.0  # a smaller difference counts as none


@dataclass(frozen=True)
class Comparison:
    """Finished runs of a study, and what they show."""

    config: Config  # what all runs share; its smoothing and seed are not used
    arms: tuple[Arm, ...]  # with or without runs so far
    runs: tuple[Run, ...]  # by arm, then by seed
    design: Design = Design()  # decides the kind of the intervals
    versions: Mapping[str, str] = field(
        default_factory=lambda: {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    )

    def add(self, run: Run) -> "Comparison":
        """The study with one more run."""
        order = [arm.name for arm in self.arms]
        runs = sorted([*self.runs, run], key=lambda run: (order.index(run.smoothing), run.seed))
        return replace(self, runs=tuple(runs))

    @property
    def shared(self) -> dict[str, Any]:
        """The configuration without what differs from run to run."""
        return {name: value for name, value in self.config.to_dict().items() if name not in ("smoothing", "seed")}

    @cached_property
    def summary(self) -> tuple[Summary, ...]:
        """Mean teacher accuracy of each arm that has runs, with its Student-t interval."""
        values = {name: [*by_seed.values()] for name, by_seed in self.accuracies.items()}
        return tuple(Summary(name, len(v), float(np.mean(v)), mean_interval(v)) for name, v in values.items())

    @cached_property
    def beaten(self) -> tuple[str, ...]:
        """The arms that are shown to be worse than another, corrected for all pairs."""
        names = list(self.accuracies)
        worse = {a for a, b in permutations(names, 2) if (pair := self.pair(a, b)) and pair.conclusion == "worse"}
        return tuple(name for name in names if name in worse)

    @cached_property
    def best(self) -> str:
        """Of the arms that are not beaten, the one with the highest mean over the seeds that they share.

        It is chosen by what was seen: what is said about it has to be corrected for all pairs.
        """
        names = [name for name in self.accuracies if name not in self.beaten]
        seeds = set.intersection(*(set(self.accuracies[name]) for name in names))
        return max(names, key=lambda name: np.mean([self.accuracies[name][seed] for seed in seeds] or [0.0]))

    @cached_property
    def baselines(self) -> tuple[str, ...]:
        """What the arms are compared with: tma and tma-matched (or else the first arm), and the best of named arms."""
        names = [entry.smoothing for entry in self.summary]
        fixed = [name for name in BASELINES if name in names] or names[:1]
        named = any(arm.name in names and not arm.known for arm in self.arms)
        return tuple(dict.fromkeys([*fixed, self.best] if named else fixed))

    @cached_property
    def paired(self) -> tuple[Pair, ...]:
        """Each arm against each baseline, every pair once."""
        found = []
        for i, baseline in enumerate(self.baselines):
            for name in self.accuracies:
                if name not in self.baselines[: i + 1] and (pair := self.pair(name, baseline)):
                    found.append(pair)
        return tuple(found)

    def pair(self, smoothing: str, baseline: str) -> Pair | None:
        """Any arm against any other; None if they have no seed in common."""
        ours, theirs = self.accuracies[smoothing], self.accuracies[baseline]
        if not ours.keys() & theirs.keys():
            return None
        margin, sequential = self.design.margin, self.design.until is not None
        return statistics.pair(
            smoothing, baseline, ours, theirs, pairs=self.pairs, margin=margin, sequential=sequential
        )

    @property
    def pairs(self) -> int:
        """How many pairs of arms there are, for all of which the corrected intervals hold together."""
        return max(1, math.comb(len(self.arms), 2))

    def settled(self, half_width: float, names: Sequence[str]) -> bool:
        """Whether the interval of the difference between any two of these arms is that narrow, in points."""
        for one, other in combinations(names, 2):
            known = one in self.accuracies and other in self.accuracies
            interval = pair.ci95 if known and (pair := self.pair(one, other)) else None
            if interval is None or (interval[1] - interval[0]) / 2 > half_width:
                return False
        return True

    @cached_property
    def accuracies(self) -> dict[str, dict[int, float]]:
        """Teacher accuracy in per cent, by arm and seed; arms without runs are left out."""
        found: dict[str, dict[int, float]] = {}
        for run in self.runs:
            found.setdefault(run.smoothing, {})[run.seed] = run.teacher_accuracy
        return found

    @property
    def measure(self) -> str:
        """What accuracy means: that of the method's own classifier, or of its backbone's nearest neighbours."""
        return {"accuracy": "accuracy", "knn": "kNN accuracy"}[methods.get(self.config.method).headline]

    def write(self, path: Path) -> None:
        """Write results.json, atomically."""
        content = {
            "config": self.shared,
            "versions": dict(self.versions),
            "runs": [asdict(run) for run in self.runs],
            "summary": [asdict(entry) for entry in self.summary],
            "paired": [asdict(pair) for pair in self.paired],
            "arms": {arm.name: dict(arm.settings) for arm in self.arms},
            "design": asdict(self.design),
        }
        text = json.dumps(content, indent=1, allow_nan=False)
        checkpoint.write_whole(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))

    @classmethod
    def read(cls, path: Path) -> "Comparison":
        """Read results.json; those of version 0.1 have the known arms alone. UserError: something else wrote it."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            runs = tuple(Run(**run) for run in content["runs"])
            if "arms" in content:
                arms = tuple(Arm(name, settings) for name, settings in content["arms"].items())
            else:
                arms = tuple(known(name) for name in dict.fromkeys(run.smoothing for run in runs))
            design = Design(**content.get("design", {}))
            return cls(Config.from_dict(content["config"]), arms, runs, design, content["versions"])
        except UserError as error:
            raise UserError(f"{path}: {error}; choose another --out") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} was not written by compare: choose another --out") from None
