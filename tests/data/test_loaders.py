import pytest
import torch

from spatial_ensemble.data.images import Images
from spatial_ensemble.data.loaders import Batches
from spatial_ensemble.data.sampling import Order
from spatial_ensemble.data.views import View, view
from spatial_ensemble.errors import UserError

PLAIN = View(lambda images, draws: images, 0)
NOISE = View(lambda images, draws: images / 512 + draws.float().view(-1, 1, 1, 1) / 2, 1)
NUMBER, CLASSES = 30, 3


def numbered() -> Images:
    """30 images, each of one value: its own number."""
    values = torch.arange(NUMBER, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return Images(values.contiguous(), torch.arange(NUMBER) % CLASSES)


def make(**changes) -> Batches:
    options = {
        "labelled": torch.tensor([0, 1, 2, 3, 4, 5]),
        "labelled_views": [PLAIN],
        "unlabelled_views": [PLAIN],
        "batch_size": 4,
        "unlabelled_batch_size": 8,
        "mean": [0.0],
        "std": [1 / 255],
        "seed": 0,
    }
    return Batches(numbered(), **{**options, **changes})


def numbers(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].round().int().tolist()


def equal(one, other) -> bool:
    tensors = [(*batch.labelled, batch.labels, *batch.unlabelled) for batch in (one, other)]
    return one.step == other.step and all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_a_batch_is_what_it_says():
    batch = make()(3)
    assert batch.step == 3
    (labelled,), (unlabelled,) = batch.labelled, batch.unlabelled
    assert labelled.shape == (4, 1, 4, 4) and unlabelled.shape == (8, 1, 4, 4)
    assert labelled.dtype == unlabelled.dtype == torch.float32 and batch.labels.dtype == torch.int64
    assert [number % CLASSES for number in numbers(labelled)] == batch.labels.tolist()


@pytest.mark.parametrize("size", [1, 4, 7, 30, 64, 100])
def test_each_epoch_shows_each_image_exactly_once(size):
    order = Order(torch.arange(NUMBER), 0, "test")
    shown = torch.cat([order.batch(step, size) for step in range(5 * NUMBER // size + 1)])[: 5 * NUMBER]
    epochs = shown.view(5, NUMBER)
    assert all(epoch.sort().values.tolist() == list(range(NUMBER)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5


def test_labelled_images_alone_have_labels_and_all_images_are_shown_unlabelled():
    batches = make()
    labelled = [number for step in range(3) for number in numbers(batches(step).labelled[0])]
    assert sorted(labelled) == sorted([0, 1, 2, 3, 4, 5] * 2)
    unlabelled = [number for step in range(15) for number in numbers(batches(step).unlabelled[0])]
    assert sorted(unlabelled) == sorted(list(range(NUMBER)) * 4)


def test_neither_the_steps_before_nor_their_order_change_a_batch():
    random = {"labelled_views": [NOISE, PLAIN], "unlabelled_views": [NOISE, NOISE]}
    batches = make(**random)
    forward = [batches(step) for step in range(12)]
    backward = [batches(step) for step in reversed(range(12))][::-1]
    assert all(equal(one, other) for one, other in zip(forward, backward, strict=True))
    assert all(equal(make(**random)(step), forward[step]) for step in (0, 5, 11))


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_together_see_the_batch_of_one(world_size):
    random = {"labelled_views": [NOISE], "unlabelled_views": [PLAIN, NOISE]}
    ranks = [make(**random, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 3, 9):
        whole, parts = make(**random)(step), [rank(step) for rank in ranks]
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert torch.equal(torch.cat([part.labelled[0] for part in parts]), whole.labelled[0])
        for number in range(2):
            assert torch.equal(torch.cat([part.unlabelled[number] for part in parts]), whole.unlabelled[number])


def test_the_ranks_see_the_strong_view_of_one():
    pixels = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    data = Images(pixels.byte(), torch.full((16,), -1))
    options = {"labelled_views": [], "unlabelled_views": [view("strong", size=8, flip=True)], "batch_size": 2}
    options |= {"unlabelled_batch_size": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "seed": 1}
    whole = Batches(data, torch.arange(0), **options)(2).unlabelled[0]
    parts = [Batches(data, torch.arange(0), **options, rank=rank, world_size=2)(2).unlabelled[0] for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_every_view_step_and_seed_draws_anew():
    pure = View(lambda images, draws: draws.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), 1)
    views = {"labelled_views": [pure, pure], "unlabelled_views": [pure, pure]}
    seen = [
        float(image[0, 0, 0, 0])
        for seed in (0, 1)
        for step in range(5)
        for batch in [make(**views, seed=seed)(step)]
        for image in (*batch.labelled, *batch.unlabelled)
    ]
    assert len(set(seen)) == 2 * 5 * 4


def test_two_seeds_show_the_images_in_another_order():
    assert numbers(make(seed=0)(0).unlabelled[0]) != numbers(make(seed=1)(0).unlabelled[0])


def test_views_come_in_their_order_and_are_normalised():
    white = View(lambda images, draws: torch.full_like(images, 255), 0)
    black = View(lambda images, draws: torch.zeros(len(images), 1, 2, 2), 0)
    batch = make(labelled_views=[white, black], mean=[0.5], std=[0.25])(0)
    assert batch.labelled[0].unique().tolist() == [2.0]
    assert batch.labelled[1].unique().tolist() == [-2.0] and batch.labelled[1].shape == (4, 1, 2, 2)


def test_views_that_a_method_does_not_name_are_not_made():
    batch = make(labelled=torch.arange(0), labelled_views=[])(0)
    assert batch.labelled == () and len(batch.labels) == 0 and len(batch.unlabelled) == 1
    batch = make(unlabelled_views=[])(0)
    assert batch.unlabelled == () and len(batch.labels) == 4


def test_the_global_generator_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    first = make(labelled_views=[NOISE])(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert equal(make(labelled_views=[NOISE])(0), first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "a batch of 0 images cannot be shared out evenly over 1 process(es)"),
        ({"unlabelled_batch_size": -8}, "a batch of -8 images cannot be shared out evenly over 1 process(es)"),
        ({"world_size": 8}, "a batch of 4 images cannot be shared out evenly over 8 process(es)"),
        ({"labelled": torch.arange(0)}, "no labelled image to train on: this method needs labels"),
    ],
)
def test_impossible_batches_are_errors(changes, message):
    with pytest.raises(UserError) as error:
        make(**changes)
    assert str(error.value) == message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # that it is a prototype
def test_a_batch_on_a_gpu_is_that_of_the_cpu_and_nobody_waits_for_the_device():
    flip = View(lambda images, draws: images.flip(3), 1)
    views = {"labelled_views": [PLAIN, flip], "unlabelled_views": [flip]}
    batches = make(**views, device="cuda")
    try:
        torch.cuda.set_sync_debug_mode("error")
        batch = batches(5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch.labels.device.type == "cuda"
    on_cpu = make(**views)(5)
    assert torch.equal(batch.labels.cpu(), on_cpu.labels)
    for one, other in zip(batch.labelled + batch.unlabelled, on_cpu.labelled + on_cpu.unlabelled, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6, atol=1e-6)
