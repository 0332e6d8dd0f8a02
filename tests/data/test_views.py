"""What every view promises: a pure function of its draws, image by image."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from spatial_ensemble.data.augment.selfsupervised import RECIPES
from spatial_ensemble.data.views import View, view
from spatial_ensemble.errors import UserError

FIXMATCH = ["plain", "weak", "strong"]


def images(count: int = 24, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randint(
        0, 256, (count, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(one: Tensor, other: Tensor, *, close: float) -> None:
    """Bytes are equal; floating point may differ by the order of a sum, which a library chooses by the shape."""
    torch.testing.assert_close(one, other, rtol=0, atol=0 if one.dtype == torch.uint8 else close)


@pytest.fixture(params=[*FIXMATCH, *RECIPES])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def made(name: str) -> View:
    return view(name, size=16, flip=True)


def test_equal_generators_give_equal_views(made: View) -> None:
    assert torch.equal(made(images(), generator()), made(images(), generator()))


def test_another_generator_gives_another_view(made: View, name: str) -> None:
    same = torch.equal(made(images(), generator(1)), made(images(), generator(2)))
    assert same == (name == "plain")


def test_an_image_depends_on_its_own_draws_alone(made: View) -> None:
    """So a rank may augment its slice only, and gets what the whole batch would have given it."""
    draws = made.draw(24, generator())
    whole = made.apply(images(), draws)
    for part in (slice(0, 1), slice(5, 9), slice(23, 24)):
        assert_same(made.apply(images()[part], draws[part]), whole[part], close=1e-6)
    order = torch.randperm(24, generator=generator(3))
    assert_same(made.apply(images()[order], draws[order]), whole[order], close=1e-6)


def test_the_global_generators_are_left_alone(made: View) -> None:
    def states() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    made(images(), generator())
    assert states() == before


def test_the_images_given_are_left_alone(made: View) -> None:
    given = images()
    made(given, generator())
    assert torch.equal(given, images())


def test_an_empty_batch_stays_empty(made: View) -> None:
    assert len(made(images(0), generator())) == 0


@pytest.mark.parametrize("name", FIXMATCH)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 4, 8, 32])
def test_fixmatch_views_keep_type_and_shape(name: str, channels: int, size: int) -> None:
    given = images(5, channels, size)
    result = view(name, size=size, flip=False)(given, generator())
    assert (result.shape, result.dtype) == (given.shape, torch.uint8)


def test_without_flip_nothing_is_mirrored() -> None:
    """On a ramp from left to right, a crop keeps the middle columns rising; a mirror image would have them falling."""
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).expand(200, 1, 16, 16)
    middle = view("weak", size=16, flip=False)(ramp, generator())[..., 4:12].int()
    assert (middle.diff(dim=3) > 0).all()
    middle = view("weak", size=16, flip=True)(ramp, generator())[..., 4:12].int()
    assert 60 < (middle.diff(dim=3) < 0).all(dim=3)[:, 0, 0].sum() < 140


def test_an_unknown_view_is_refused() -> None:
    with pytest.raises(UserError, match="unknown view 'fancy': choose one of plain, weak, strong, crop, byol_1, "):
        view("fancy", size=16, flip=True)


@pytest.mark.parametrize("name", ["nowhere.view", "torch.nn.nothing", ".dim", "a..b"])
def test_an_unknown_dotted_path_is_named_with_the_known_views(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown view '{name}': choose one of plain, weak, .* or the dotted path"):
        view(name, size=16, flip=True)


def test_images_that_do_not_fit_are_refused(made: View, name: str) -> None:
    with pytest.raises(ValueError, match=rf"view '{name}' was made for 16 x 16 pixels, got images \[24, 3, 8, 8\]"):
        made(images(size=8), generator())
    with pytest.raises(ValueError, match="images must be uint8"):
        made(images().float(), generator())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # that it is a prototype
def test_a_gpu_gives_the_same_view_without_being_waited_for(made: View) -> None:
    given = images().cuda()
    made(given, generator())  # loads the kernels
    try:
        torch.cuda.set_sync_debug_mode("error")
        result = made(given, generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(result.cpu(), made(images(), generator()), close=1e-4)
