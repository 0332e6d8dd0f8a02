"""A data set in a folder: train/<class>/*.png and test/<class>/*.png, or <class>/*.png alone."""

from pathlib import Path

from spatial_ensemble.data.images import ImageData


def load_folder(path: Path, *, image_size: int | None, skip_broken: bool, seed: int) -> ImageData:
    raise NotImplementedError
