"""Images to fill folders with."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

TEXT = b"Once upon a time there was no image.\n" * 9


def picture(seed: int, size: int = 8, mode: str = "RGB", width: int | None = None) -> Image.Image:
    channels = () if mode == "L" else (3,)
    values = np.random.default_rng(seed).integers(0, 256, (size, width or size, *channels), dtype=np.uint8)
    return Image.fromarray(values)


def write(root: Path, files: dict[str, Image.Image | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, lossless=True)
    return root


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.atleast_3d(np.asarray(image)).copy()).permute(2, 0, 1)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def classes(number: int, each: int, size: int = 8) -> dict[str, Image.Image | bytes]:
    """`each` pictures in every one of the folders a, b, c, ..."""
    return {f"{chr(97 + c)}/{i:02}.png": picture(100 * c + i, size) for c in range(number) for i in range(each)}
