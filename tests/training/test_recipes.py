"""Every recipe makes a whole configuration, and takes a step."""

import numpy as np
import pytest
import torch
from PIL import Image

from spatial_ensemble import UserError, methods
from spatial_ensemble.training import checkpoint, recipes
from spatial_ensemble.training.build import build_smoothing
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.export import export
from spatial_ensemble.training.run import train


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten classes of two tiny colour images, for training and for testing."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(10):
            (root / part / f"{label}").mkdir(parents=True)
            for index in range(2):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / f"{label}" / f"{index}.png")
    return str(root)


def tiny(config: Config, images: str) -> Config:
    """One step on tiny images; the network, the optimizer and the options are the recipe's own."""
    less = {"hidden_dim": 64, "queue_size": 64, "shuffle_groups": 2}
    options = {name: value for name, value in less.items() if hasattr(config.options, name)}
    labels = None if config.images.labels is None else 10
    changes = {"steps": 1, "warmup_steps": 0, "image_size": 16, "batch_size": 4, "labels": labels}
    return config.replace(data="folder", path=images, **changes, **options)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_takes_a_step(name, images, tmp_path):
    config = tiny(recipes.get(name), images)
    if methods.get(config.method).needs_init:
        pretrained = train(tiny(recipes.moco_imagenet(), images), tmp_path / "pretrained", progress=False)
        export(pretrained.checkpoint, tmp_path / "pretrained.safetensors")
        config = config.replace(init=str(tmp_path / "pretrained.safetensors"))
    result = train(config, tmp_path / "run", progress=False)
    content = checkpoint.load(result.checkpoint)
    assert content["step"] == 1
    assert np.isfinite(result.history[0]["loss"])
    momentum, preserve_prob = build_smoothing(recipes.get(name)).at(0)
    assert 0.9 <= momentum < 1 and preserve_prob in (0.0, 0.5, 0.7)


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_every_method_has_defaults(method, data):
    config = recipes.default(method, data)
    assert (config.method, config.images.data) == (method, data)
    recipes_of_the_method = {recipes.get(name).method for name in recipes.RECIPES}
    assert method in recipes_of_the_method


@pytest.mark.parametrize("method", ["byol", "moco", "dino"])
def test_a_self_supervised_teacher_is_slow_from_the_first_step(method):
    """MoCo's queue holds the keys of 32 steps, which are to come from nearly the same teacher."""
    config = recipes.default(method, "folder")
    momentum, preserve_prob = build_smoothing(config).at(0)
    steps_to_change = 1 / ((1 - momentum) * (1 - preserve_prob))
    assert steps_to_change >= 50
    if method == "moco":
        assert steps_to_change > 5 * 4096 / config.run.batch_size


def test_published_numbers():
    fixmatch, byol = recipes.fixmatch_cifar10(), recipes.byol_imagenet()
    assert (fixmatch.run.steps, fixmatch.run.batch_size, fixmatch.options.unlabelled_ratio) == (2**20, 64, 7)
    assert recipes.fixmatch_cifar100().optim.weight_decay == 0.001
    assert byol.run.steps == 200 * 1_281_167 // 256
    assert recipes.get("byol_imagenet", epochs=1000).run.steps == 1000 * 1_281_167 // 256
    assert recipes.get("byol_cifar10").optim.warmup_steps == 10 * 50_000 // 256
    ends = build_smoothing(byol)
    assert ends.at(0) == (0.99, 0.7) and ends.at(byol.run.steps) == (1.0, 0.7)


def test_bad_recipes():
    with pytest.raises(UserError, match="recipe 'fixmatch' is not known: use one of fixmatch_digits"):
        recipes.get("fixmatch")
    with pytest.raises(UserError, match="fixmatch_cifar10 is given in steps"):
        recipes.get("fixmatch_cifar10", epochs=3)
    with pytest.raises(UserError, match="--epochs must be more than the 10 of the warm-up, got 10"):
        recipes.get("byol_cifar10", epochs=10)


def test_linear_evaluation_starts_from_an_export_and_leaves_the_backbone(images, tmp_path):
    """The backbone of the run, weights and statistics, is the exported teacher's, before and after a step."""
    network = {"network": "small", "data": "digits", "path": None, "image_size": None, "labels": None}
    byol = tiny(recipes.byol_imagenet(), images).replace(**network)
    export(train(byol, tmp_path / "byol", progress=False).checkpoint, tmp_path / "teacher.safetensors")
    linear = tiny(recipes.linear_imagenet(), images)
    linear = linear.replace(**network, init=str(tmp_path / "teacher.safetensors"))
    content = checkpoint.load(train(linear, tmp_path / "linear", progress=False).checkpoint)
    teacher = checkpoint.load(tmp_path / "byol" / "last.ckpt")["teacher"]
    backbone = {name: value for name, value in content["method"].items() if "backbone" in name}
    assert backbone
    for name, value in backbone.items():
        assert torch.equal(value, teacher[name.replace("student.", "module.")]), name
    (tmp_path / "text").write_text("no weights")
    for path, message in (("missing", "does not exist"), ("text", "is not a safetensors file")):
        with pytest.raises(UserError, match=message):
            train(linear.replace(init=str(tmp_path / path)), tmp_path / "bad", progress=False)
    with pytest.raises(UserError, match="holds another backbone"):
        train(linear.replace(network="wrn-28-2"), tmp_path / "bad", progress=False)
    assert not (tmp_path / "bad").exists()
