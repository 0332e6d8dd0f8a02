"""What makes a step fast changes nothing else: bfloat16, channels-last batches and a fused optimizer."""

import pytest
import torch
from torch import nn

from spatial_ensemble.data.images import normalise
from spatial_ensemble.methods.options.fixmatch import FixMatchOptions
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.build import restore
from spatial_ensemble.training.config import Config, ImagesConfig, RunConfig, TeacherConfig
from spatial_ensemble.training.optim import build_optimizer
from spatial_ensemble.training.run import train

MIXED = Config(
    "fixmatch",
    ImagesConfig("digits", labels=20),
    teacher=TeacherConfig("se"),
    run=RunConfig(steps=6, batch_size=10, eval_every=6, precision="bf16-mixed"),
    options=FixMatchOptions(unlabelled_ratio=1),
)


class Killed(BaseException):
    pass


def kill_at_4(done):
    if done == 4:
        raise Killed


def tensors(content):
    kept = {f"{part}.{name}": value for part in ("method", "teacher") for name, value in content[part].items()}
    for number, state in content["optimizer"]["state"].items():
        kept |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    return {name: value for name, value in kept.items() if isinstance(value, torch.Tensor)}


def test_a_mixed_run_resumes_to_the_bit_and_keeps_all_state_in_float32(tmp_path):
    config = MIXED.replace(checkpoint_every=4)
    straight = tensors(checkpoint.load(train(config, tmp_path / "straight", progress=False).checkpoint))
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", progress=False, on_step=kill_at_4)
    result = train(config, tmp_path / "killed", resume=True, progress=False)
    assert result.steps_done == 2
    resumed = tensors(checkpoint.load(result.checkpoint))
    assert straight.keys() == resumed.keys()
    assert any("running_var" in name for name in straight) and any("momentum_buffer" in name for name in straight)
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
        assert value.dtype == torch.float32 or not value.is_floating_point(), name


def test_the_masks_do_not_depend_on_the_precision(tmp_path):
    ages = []
    for precision in ("32-true", "bf16-mixed"):
        path = train(MIXED.replace(precision=precision), tmp_path / precision, progress=False).checkpoint
        ages.append(restore(path)[-1].age())
    assert ages[0] == ages[1]
    assert len({int(age) for age in ages[0].values()}) > 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_are_channels_last_and_their_values_as_ever(channels, dtype):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, channels, 8, 8), generator=generator, dtype=torch.uint8)
    images = images if dtype == torch.uint8 else images / 255
    before = images.clone()
    mean, std = (torch.rand(channels, 1, 1, generator=generator) + 0.1 for _ in range(2))
    shown = normalise(images, mean, std)
    assert shown.is_contiguous(memory_format=torch.channels_last)
    expected = (images.double() / (255 if dtype == torch.uint8 else 1) - mean) / std
    torch.testing.assert_close(shown.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(images, before)


def test_the_fused_optimizer_takes_the_steps_of_the_plain_one():
    models = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        stepper = build_optimizer(model, MIXED.replace(optimizer="adamw"))
        assert all(group["fused"] for group in stepper.param_groups)
        for group in stepper.param_groups:
            group["fused"] = fused
        for _ in range(5):
            stepper.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            stepper.step()
        models.append(model)
    for ours, plain in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
