"""Recipes: functions that return a whole configuration."""

from spatial_ensemble.training.config import Config


def fixmatch_digits() -> Config:
    """FixMatch on scikit-learn's 8x8 digits with 20 labels: minutes on two cores."""
    return Config(
        method="fixmatch",
        data="digits",
        labels=20,
        steps=600,
        batch_size=20,
        lr=0.03,
        lr_schedule="fixmatch",
        momentum=0.99,
        preserve_prob=0.5,
    )


def default(method: str, data: str) -> Config:
    """The configuration that the command line starts from.

    Beside the recipe for digits it is one for a first look on a few CPU cores, minutes for a few hundred steps:
    batches of 16 labelled images, BatchNorm's statistics and the teacher fast enough for a short run. Published
    hyper-parameters, which want hours of a GPU, are in the recipes.
    """
    if (method, data) == ("fixmatch", "digits"):
        return fixmatch_digits()
    return Config(
        method=method,
        data=data,
        batchnorm_momentum=0.1,
        momentum=0.999,
        momentum_schedule="warmup",
        steps=1000,
        batch_size=16,
        lr_schedule="fixmatch",
        eval_every=500,
        checkpoint_every=500,
    )
