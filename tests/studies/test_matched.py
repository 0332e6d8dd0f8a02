"""The runs of one seed differ in the smoothing alone."""

from pathlib import Path

import torch
from spy import Spy, digest

from spatial_ensemble.studies.arms import SMOOTHINGS
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.recipes import fixmatch_digits
from spatial_ensemble.training.run import train

STEPS = 4


def observe(folder: Path, smoothing: str, seed: int) -> tuple[list[str], str, str]:
    config = fixmatch_digits().replace(
        method="spy.Spy", smoothing=smoothing, seed=seed, steps=STEPS, eval_every=STEPS, device="cpu"
    )
    torch.manual_seed(len(list(folder.iterdir())))  # what the process drew before must not matter
    result = train(config, folder / f"{smoothing}-{seed}", progress=False)
    teacher = checkpoint.load(result.checkpoint)["teacher"]
    weights = [value for name, value in sorted(teacher.items()) if isinstance(value, torch.Tensor)]
    return Spy.last.seen, Spy.last.first, digest(*weights)


def test_one_seed_sees_the_same_labels_weights_batches_and_augmentations(tmp_path: Path) -> None:
    runs = [observe(tmp_path, smoothing, 0) for smoothing in SMOOTHINGS]
    batches, weights, teachers = zip(*runs, strict=True)
    assert all(len(seen) == STEPS and seen == batches[0] for seen in batches)
    assert len(set(weights)) == 1
    assert len(set(teachers)) == len(SMOOTHINGS)  # and yet they are four smoothings


def test_another_seed_sees_others(tmp_path: Path) -> None:
    (batches, weights, _), (others, other_weights, _) = (observe(tmp_path, "tma", seed) for seed in (0, 1))
    assert not set(batches) & set(others) and weights != other_weights
