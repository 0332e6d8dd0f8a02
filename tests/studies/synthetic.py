"""Studies that nobody ran, with known differences."""

import math
from collections.abc import Sequence

import numpy as np

from spatial_ensemble.studies.arms import Arm, known
from spatial_ensemble.studies.comparison import Comparison, Design
from spatial_ensemble.studies.job import Run
from spatial_ensemble.studies.plots import Ages
from spatial_ensemble.training.recipes import fixmatch_digits

GAIN = {"tma": 0.0, "tma-matched": 0.3, "se": 1.1, "sts": 0.9}
FIXED = Design()
VERSIONS = {"python": "3.11.9", "spatial-ensemble": "0.1.0", "torch": "2.15.0"}


def synthetic_comparison(seeds: int = 3, steps: int = 400, every: int = 40) -> Comparison:
    """Learning curves that rise to about 95 per cent, with a spread over the seeds that all arms share."""
    runs = []
    for number, (arm, gain) in enumerate(GAIN.items()):
        for seed in range(seeds):
            draw = np.random.default_rng([seed, number])
            top = 94.0 + gain + 2.0 * math.sin(seed) + 0.3 * float(draw.standard_normal())
            history = []
            for step in range(every, steps + 1, every):
                level = top - 80 * math.exp(-step / (40 + 10 * number)) + float(draw.standard_normal()) / 2
                row = {
                    "step": step,
                    "teacher_accuracy": level,
                    "student_accuracy": level - 1 - gain / 2,
                    "loss": 2 / step,
                }
                history.append(row)
            last = history[-1]
            runs.append(Run(arm, seed, last["teacher_accuracy"], last["student_accuracy"], 25.0, history))
    config = fixmatch_digits().replace(steps=steps, momentum=0.99)
    return Comparison(config, tuple(map(known, GAIN)), tuple(runs), versions=VERSIONS)


def comparison_of(*, design: Design = FIXED, **accuracies: Sequence[float]) -> Comparison:
    """A study with these teacher accuracies, by arm (with _ for -) and seed."""
    names = [name.replace("_", "-") for name in accuracies]
    runs = [
        Run(name, seed, value, value, 1.0, [])
        for name, values in zip(names, accuracies.values(), strict=True)
        for seed, value in enumerate(values)
    ]
    arms = tuple(known(name) if name in GAIN else Arm(name, {"smoothing": "tma"}) for name in names)
    return Comparison(fixmatch_digits(), arms, tuple(runs), design, VERSIONS)


def synthetic_ages(seeds: int = 3, layers: int = 5, preserve_prob: float = 0.5) -> Ages:
    """Geometric ages, as the draws give them."""
    names = [f"backbone.layers.{layer}.{part}" for layer in range(layers) for part in ("weight", "bias")]
    steps = {
        seed: {
            name: np.random.default_rng([seed, i]).geometric(1 - preserve_prob, 1) - 1 for i, name in enumerate(names)
        }
        for seed in range(seeds)
    }
    return Ages("se", preserve_prob, "tensor", steps)
