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
    """The configuration that the command line starts from."""
    if (method, data) == ("fixmatch", "digits"):
        return fixmatch_digits()
    return Config(method=method, data=data, steps=1000, batch_size=16)
