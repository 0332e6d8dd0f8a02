"""A study that nobody ran: results in the format of results.json, with known differences."""

import math
from typing import Any

import numpy as np

from spatial_ensemble.studies.statistics import paired_differences, summarise

GAIN = {"tma": 0.0, "tma-matched": 0.3, "se": 1.1, "sts": 0.9}


def synthetic_results(seeds: int = 3, steps: int = 400, every: int = 40) -> dict[str, Any]:
    """Learning curves that rise to about 95 per cent, with a spread over the seeds that all smoothings share."""
    runs = []
    for number, (smoothing, gain) in enumerate(GAIN.items()):
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
            accuracies = {name: last[name] for name in ("teacher_accuracy", "student_accuracy")}
            runs.append({"smoothing": smoothing, "seed": seed, **accuracies, "seconds": 25.0, "history": history})
    config = {
        "method": "fixmatch",
        "data": "digits",
        "labels": 20,
        "steps": steps,
        "momentum": 0.99,
        "preserve_prob": 0.5,
        "unit": "tensor",
    }
    return {
        "config": config,
        "versions": {"python": "3.11.9", "spatial-ensemble": "0.1.0", "torch": "2.15.0"},
        "runs": runs,
        "summary": summarise(runs),
        "paired": paired_differences(runs),
    }


def synthetic_ages(seeds: int = 3, layers: int = 5, preserve_prob: float = 0.5) -> dict[int, dict[str, np.ndarray]]:
    """By seed and name of the tensor: geometric ages, as the draws give them."""
    names = [f"backbone.layers.{layer}.{part}" for layer in range(layers) for part in ("weight", "bias")]
    return {
        seed: {
            name: np.random.default_rng([seed, i]).geometric(1 - preserve_prob, 1) - 1 for i, name in enumerate(names)
        }
        for seed in range(seeds)
    }
